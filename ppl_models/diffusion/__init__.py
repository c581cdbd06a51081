"""Chains from noise to rows.

Files:
    model: the program, its guide, and the terms of their bound
    schedules: how fast a row turns into noise
    preconditioning: what the network predicts, and the row that follows
    denoising: one step of each row, as an objective
    repeated: samplers whose steps run as compiled code
    samplers: ways back from noise, and guidance
    bound: all steps, as a lower bound of the evidence
    flow: the differential equation without chance, as an estimate of the evidence
    latent: a VAE whose prior is a diffusion model
"""
