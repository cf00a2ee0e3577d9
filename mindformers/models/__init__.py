# SPDX-License-Identifier: Apache-2.0
"""Models, tokenizers and processors."""
