"""Objectives (ELBOs) and their shared components."""
