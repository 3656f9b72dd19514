"""The classes of funcopt.optim, and one made of a rule, keep every law that speaks of them; one line a class."""

import funcopt
from funcopt.testing import law_tests

test_sgd = law_tests(funcopt.optim.SGD, max_examples=30)
test_adam = law_tests(funcopt.optim.Adam, max_examples=30)
test_adamw = law_tests(funcopt.optim.AdamW, max_examples=30)
test_of_a_rule = law_tests(funcopt.optim.from_pure(funcopt.sgd(nesterov=True)), max_examples=30)
