# SPDX-License-Identifier: Apache-2.0
"""Commands that turn text into MindRecord files."""
