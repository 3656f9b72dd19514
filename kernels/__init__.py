"""The rules as Triton runs them; imported as `funcopt.kernels`, and only when a kernel is wanted."""
