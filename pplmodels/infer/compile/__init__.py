"""Compiled steps: a pair is traced into a graph, which is checked and replayed."""
