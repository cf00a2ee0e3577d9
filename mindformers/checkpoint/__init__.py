# SPDX-License-Identifier: Apache-2.0
"""Checkpoints that survive: file names (``layout``), writing (``save``), reading (``load``), ``resume``.

Nothing is imported here, so that ``layout`` stays free of MindSpore.
"""
