"""cnikit: the CNI plugins of a container host, and a CNI runtime, as a library."""

__version__ = "0.1.0"
