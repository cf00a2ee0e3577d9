# SPDX-License-Identifier: Apache-2.0
"""The cluster on a laptop: run semi-auto parallel in CPU processes, or compile the graph of any rank of any cluster."""
