# SPDX-License-Identifier: Apache-2.0
"""Speed measured beside the peers: medians and ratios of rounds taken in turn, one JSON object a line."""
