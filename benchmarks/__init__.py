"""Measured ratios against named baselines; each module is a command."""

from shared.companions import tolerate_cuda_builds

tolerate_cuda_builds()  # here, for the processes that are spawned, too: they import the package first
