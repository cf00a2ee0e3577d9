# SPDX-License-Identifier: Apache-2.0
"""MindSpore's scheduler of a CPU job: the meeting point of its ranks; ends when all of them have left."""


def main() -> None:
    """Serve until the ranks are done. The environment (``MS_ROLE=MS_SCHED`` ...) says where."""
    import mindspore as ms
    from mindspore import communication

    ms.set_device("CPU")
    communication.init()


if __name__ == "__main__":
    main()
