# SPDX-License-Identifier: Apache-2.0
"""An OpenAI-compatible service: requests of many clients share the steps of one model (continuous batching)."""
