"""Machines that run a network, as targets of :func:`gracile.compile`, and the engines it is measured against."""
