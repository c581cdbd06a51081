"""Chains from noise to rows: model, schedules, samplers, bounds."""
