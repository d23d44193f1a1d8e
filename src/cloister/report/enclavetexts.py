"""What the report says of trusted execution; part of the table in `texts.py`."""

from __future__ import annotations

from typing import Final

from cloister.report.text import Text

__all__ = ["ENCLAVE_TEXTS"]

ENCLAVE_TEXTS: Final[dict[str, Text]] = {
    "not_hardware": Text("not hardware-protected", "无硬件保护"),
    "not_hardware_banner": Text(
        "Not hardware-protected: the evidence of this run comes from a TPM made of software. Whoever runs "
        "the machine can look inside and can forge it. It shows the protocol, not the protection.",
        "无硬件保护：本次运行的证据来自软件模拟的 TPM。掌握这台机器的人可以查看内部，也可以伪造证据。"
        "这里展示的是协议，而不是保护。",
    ),
    "h_enclave": Text("Which software got the keys", "哪些软件得到了密钥"),
    "h_enclave_note": Text(
        "The key to the rows of each {site} lies with its own broker. A worker gets it only after it has "
        "shown what it is made of, and only that worker can open what it gets.",
        "每家{site}数据的密钥存放在所有者的密钥代理处。工作进程必须先证明自己由什么构成，才能得到密钥；"
        "发出的密钥只有该进程能打开。",
    ),
    "enclave_who": Text("Who showed evidence", "出示证据者"),
    "enclave_kind": Text("Evidence", "证据"),
    "enclave_package": Text("Package, as measured", "度量到的软件包"),
    "enclave_verdict": Text("Verdict", "结论"),
    "enclave_accepted": Text("accepted, {keys} keys released", "接受，发出 {keys} 个密钥"),
    "enclave_refused": Text("refused, no key released", "拒绝，未发出密钥"),
    "enclave_because": Text("Refused because: {reasons}", "拒绝原因：{reasons}"),
    "enclave_changed": Text("{who}, with {changed}", "{who}，其中{changed}"),
    "enclave_hardware": Text("hardware", "硬件"),
    "enclave_log": Text(
        "Each of these {count} verdicts was entered in a tamper-evident log before it was answered.",
        "这 {count} 个结论在答复之前都已写入防篡改日志。",
    ),
    "h_walls": Text("The walls around each worker", "工作进程周围的隔离"),
    "h_walls_note": Text(
        "The process that sees the rows in the open has no network, no other file, no other program.",
        "能看到明文数据的进程没有网络，不能访问其他文件，也不能运行其他程序。",
    ),
    "wall_stands": Text("stands", "有效"),
    "wall_missing": Text("not on this machine", "本机没有"),
    "one_changed_byte": Text("one byte of {file} changed", "{file} 被改动一个字节"),
    "worker_of": Text("Worker of {site}", "{site} 的工作进程"),
    "limit_enclave": Text(
        "The measured software measured itself, and a software TPM signed it. A changed package is found out "
        "only as long as the program that measures is the right one.",
        "软件由自身度量，并由软件 TPM 签名。只有当负责度量的程序本身可信时，软件包的改动才会被发现。",
    ),
}
