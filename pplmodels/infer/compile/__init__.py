"""The compiled step: tracing a pair into a graph, checking and replaying it."""
