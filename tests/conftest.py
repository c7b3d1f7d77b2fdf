"""What holds for all tests."""

import torch

# Most tests work on small tensors, for which a second thread only waits, and on a busy machine for long.
torch.set_num_threads(1)
