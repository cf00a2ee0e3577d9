# SPDX-License-Identifier: Apache-2.0
"""Device context, optimizers, schedules, losses, metrics and callbacks."""
