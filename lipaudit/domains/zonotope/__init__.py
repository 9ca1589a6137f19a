"""The local domain: what the network does to a small L2 ball around one input, as affine forms."""
