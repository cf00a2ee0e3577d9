# SPDX-License-Identifier: Apache-2.0
"""Starting the ranks of a job and watching over them: ``python -m mindformers.launch``, behind scripts/run_*.sh.

Nothing here imports MindSpore; only the processes it starts do.
"""
