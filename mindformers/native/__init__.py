# SPDX-License-Identifier: Apache-2.0
"""Optional kernels for CPUs, written in C++: sources in ``src``, how they are built and found. No MindSpore here."""
