# shellcheck shell=bash
# XLA flags for several GPUs, to be sourced by the launchers. A flag that XLA does
# not know ends the process: tests/test_launch_scripts.py tries each of them.

# Lets collectives (gradients, parameters with mesh.fsdp) run while the GPU
# computes what does not need them; XLA leaves it off by default.
XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
export XLA_FLAGS
