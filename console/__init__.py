"""Console: the control plane. So far only its settings; nothing is served yet."""
