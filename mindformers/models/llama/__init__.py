# SPDX-License-Identifier: Apache-2.0
"""Llama 2: configuration, maths, tokenizer, layout on machines."""
