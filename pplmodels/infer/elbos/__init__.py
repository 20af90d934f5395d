"""Objectives, and what they share."""
