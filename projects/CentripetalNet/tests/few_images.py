"""The dataset for training tests.

Not in conftest.py, whose imports take longer than those of a training, in each of its processes.
"""

from centripetalnet.data.datasets import SilhouettesSpec

FEW = SilhouettesSpec(num_train=16, num_val=7)
