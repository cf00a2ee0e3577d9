# SPDX-License-Identifier: Apache-2.0
"""Building blocks shared by models: linear layers, kernels chosen per device, the KV cache."""
