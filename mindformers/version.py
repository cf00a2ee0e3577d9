# SPDX-License-Identifier: Apache-2.0
"""The version of the package, in one place; setup.py reads this file without importing anything."""

__version__ = "1.0.0.dev0"
