"""From torch to programs."""

from lrpfunc.tracing.axes import varying
from lrpfunc.tracing.tracing import functionalize, trace, trace_along
