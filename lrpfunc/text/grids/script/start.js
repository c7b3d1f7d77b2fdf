// -- start -------------------------------------------------------------------------------------------------------------

if (data.graph) new Graph($("graph"), data.graph);
if (data.matrix) new Matrix($("matrix"), data.matrix);
