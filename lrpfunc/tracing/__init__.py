"""From torch to programs."""

from lrpfunc.tracing.tracing import functionalize, trace, trace_along
