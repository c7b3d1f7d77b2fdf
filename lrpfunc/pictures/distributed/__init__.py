"""A data set run by many processes on many machines: blocks of neighbours, a file each, in one folder.

Read on in this order: tasks, manifest, worker, ranks, ray_engine.
"""

from lrpfunc.pictures.distributed import ranks, ray_engine
from lrpfunc.pictures.distributed.tasks import BLOCK, Task, TextTask
