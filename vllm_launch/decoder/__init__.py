"""A server's decoder: who computes its decode attention."""
