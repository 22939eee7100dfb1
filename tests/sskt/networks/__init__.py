"""Tests mirroring sskt/networks."""
