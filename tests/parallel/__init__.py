# SPDX-License-Identifier: Apache-2.0
"""Runs of several processes, and compilation for clusters."""
