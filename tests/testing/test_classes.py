"""The classes of funcopt.optim, and one made of a rule, keep every law that speaks of them; one line a class."""

import funcopt
from funcopt.testing import law_tests

test_adadelta = law_tests(funcopt.optim.Adadelta, max_examples=12)
test_adafactor = law_tests(funcopt.optim.Adafactor, max_examples=12)
test_adagrad = law_tests(funcopt.optim.Adagrad, max_examples=12)
test_adam = law_tests(funcopt.optim.Adam, max_examples=24)
test_adamax = law_tests(funcopt.optim.Adamax, max_examples=12)
test_adamw = law_tests(funcopt.optim.AdamW, max_examples=24)
test_asgd = law_tests(funcopt.optim.ASGD, max_examples=12)
test_muon = law_tests(funcopt.optim.Muon, max_examples=12)
test_nadam = law_tests(funcopt.optim.NAdam, max_examples=12)
test_radam = law_tests(funcopt.optim.RAdam, max_examples=12)
test_rmsprop = law_tests(funcopt.optim.RMSprop, max_examples=12)
test_rprop = law_tests(funcopt.optim.Rprop, max_examples=12)
test_sgd = law_tests(funcopt.optim.SGD, max_examples=24)
test_sparse_adam = law_tests(funcopt.optim.SparseAdam, max_examples=12)
test_of_a_rule = law_tests(funcopt.optim.from_pure(funcopt.sgd(nesterov=True)), max_examples=12)
