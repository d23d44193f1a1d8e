"""Every sentence of the report, in English and Chinese, in one table.

`{name}` marks what a sentence takes; both languages take the same names (a test holds them to it). Nothing
here is HTML, and nothing is looked up that is not here. What is said of differential privacy is in
`privacytexts.py`.
"""

from __future__ import annotations

from typing import Final

from cloister.report.enclavetexts import ENCLAVE_TEXTS
from cloister.report.privacytexts import PRIVACY_TEXTS
from cloister.report.text import Language, Text

__all__ = ["TEXTS", "Language", "Text", "say", "say_does"]


def say(lang: Language, key: str, **values: object) -> str:
    """Return the sentence called `key`, its places filled."""
    return TEXTS[key].to(lang).format(**values)


def say_does(lang: Language, stage: str, *, private: bool) -> str:
    """Return what happens in a stage; some differ where the study claims differential privacy."""
    key = f"does_{stage}_private"
    return say(lang, key if private and key in TEXTS else f"does_{stage}")


TEXTS: Final[dict[str, Text]] = {
    # headline
    "trained": Text("{count} {sites} trained one model.", "{count}家{sites}共同训练了一个模型。"),
    "unseen": Text(
        "Its accuracy on {rows} it never saw: {value}", "在它从未见过的{rows}上，准确率为 {value}"
    ),
    "alone_each": Text("; each {site} alone: {low} to {high}", "；各家{site}单独训练：{low} 至 {high}"),
    "alone_same": Text("; each {site} alone: {low}", "；各家{site}单独训练：{low}"),
    "one_place": Text("; with all rows in one place: {value}", "；若把全部数据集中到一处：{value}"),
    "stop": Text(".", "。"),
    "semicolon": Text("; ", "；"),
    "no_row_moved": Text(
        "No {site} showed a row to another {site} or to the hub.",
        "没有一家{site}把任何一行数据交给别的{site}或中心。",
    ),
    # page
    "report": Text("Report", "报告"),
    "does_report": Text("Comparisons, charts and words", "比较、图表与文字"),
    "skip": Text("Skip to the results", "跳到结果"),
    "together": Text("Together", "共同训练"),
    "together_note": Text("rows stayed where they are", "数据留在原处"),
    "alone": Text("Each alone", "各自单独"),
    "alone_note": Text("{low_site} to {high_site}", "从 {low_site} 到 {high_site}"),
    "centralised": Text("All in one place", "全部集中"),
    "centralised_above": Text("{points} above together", "比共同训练高 {points}"),
    "centralised_below": Text("{points} below together", "比共同训练低 {points}"),
    "centralised_same": Text("the same as together", "与共同训练相同"),
    "points": Text("{value} points", "{value} 个百分点"),
    "h_stages": Text("The way the data went", "数据走过的路"),
    "h_stages_note": Text(
        "Seven stages, {seconds} in all. Under each: how long it took, and how much it moved.",
        "七个阶段，共 {seconds}。每个阶段下面是用时和数据量。",
    ),
    "h_accuracy": Text("What working together brought", "合作带来了什么"),
    "h_accuracy_note": Text(
        "Share of right answers on the same {tests} test {rows} of all {sites}, kept out of training. One of "
        "them more or less is {step}: differences of that size are chance.",
        "在各家{sites}共 {tests} 个未参与训练的测试{rows}上，回答正确的比例。"
        "相差一个即 {step}：这样大小的差别属于偶然。",
    ),
    "alone_label": Text("{site} alone", "仅 {site}"),
    "c_accuracy": Text(
        "Accuracy of the model trained together, of each site's own model, and of one trained with all "
        "rows in one place",
        "共同训练的模型、各家单独训练的模型、数据集中训练的模型的准确率",
    ),
    "h_curves": Text("How the model grew", "模型如何成长"),
    "h_curves_note": Text(
        "The common model after each of {rounds} rounds, measured on the test {rows}.",
        "共 {rounds} 轮，每轮之后的共同模型在测试{rows}上的表现。",
    ),
    "averaged_note": Text(
        " What was released is the mean of the last {count} of these models.",
        "发布的是其中最后 {count} 个模型的平均。",
    ),
    "c_curves": Text(
        "Accuracy and loss of the common model after each round, from {first} to {last}",
        "每轮之后共同模型的准确率与损失，准确率从 {first} 到 {last}",
    ),
    "axis_accuracy": Text("Accuracy", "准确率"),
    "axis_loss": Text("Loss", "损失"),
    "axis_round": Text("Round", "轮次"),
    "h_sites": Text("Who took part", "谁参加了"),
    "epochs_note": Text(
        "The secure sum was set up {count} times: {when}.", "安全求和先后建立 {count} 次：{when}。"
    ),
    "epoch_when": Text("rounds {first} to {last} by {sites}", "第 {first} 至 {last} 轮：{sites}"),
    "site": Text("Site", "站点"),
    "train_rows": Text("Rows for training", "训练行数"),
    "test_rows": Text("Rows for testing", "测试行数"),
    "accuracy_here": Text("Common model on its own test rows", "共同模型在本站点测试行上"),
    "h_sees": Text("Who could see what", "谁能看到什么"),
    "h_sees_note": Text(
        "As this study ran: the hub's view of the sum was {view}.",
        "按本次运行的设置：中心对总和的可见性为 {view}。",
    ),
    "view_sum": Text(
        "“sum” (it may see the sum of all updates, and the model)", "“sum”（可见全部更新之和与模型）"
    ),
    "view_none": Text("“none” (it computes with a sum it cannot read)", "“none”（对自己读不懂的总和做计算）"),
    "party": Text("Party", "参与方"),
    "sees": Text("sees", "可见"),
    "own": Text("its own", "仅自己的"),
    "sealed": Text("encrypted", "仅密文"),
    "never": Text("never", "不可见"),
    "p_site": Text("Each {site}", "每家{site}"),
    "p_hub": Text("The hub", "中心"),
    "p_network": Text("The network between them", "其间的网络"),
    "p_answerer": Text("Who answers predictions", "提供预测的一方"),
    "p_asker": Text("Who asks, or receives sealed results", "提问或接收密封结果的一方"),
    "p_reader": Text("A reader of the release", "发布结果的读者"),
    "w_rows": Text("Rows", "原始数据"),
    "w_update": Text("One site's update", "单个站点的更新"),
    "w_sum": Text("Sum of updates", "更新之和"),
    "w_model": Text("Model", "模型"),
    "w_question": Text("A question and its answer", "预测的问题与答案"),
    "h_certificate": Text("The certificate, in words", "证书说了什么"),
    "cert_signed": Text("Signed by", "签名"),
    "cert_signed_value": Text(
        "the hub “{hub}”; {count} of the {sites} also signed the log that it was entered in, and a verifier "
        "demands {required}",
        "中心“{hub}”；它所记入的日志另有 {count} 家{sites}共同签名，验证者要求至少 {required} 家",
    ),
    "cert_plan": Text("Plan, SHA-256", "方案 SHA-256"),
    "cert_model": Text("Model, SHA-256", "模型 SHA-256"),
    "cert_file": Text("Certificate", "证书文件"),
    "cert_file_sha": Text("Certificate, SHA-256", "证书 SHA-256"),
    "h_limits": Text("What this does not protect", "它保护不了什么"),
    "limit_model": Text(
        "No differential privacy was used. Whoever holds the model may learn something about the rows "
        "it was trained on.",
        "未使用差分隐私。持有模型的人可能推断出训练数据的某些信息。",
    ),
    "limit_sum": Text(
        "The hub sees each round's sum and model. A malicious hub can steer the sums it asks for and "
        "learn from them.",
        "中心能看到每轮的总和与模型。恶意的中心可以操纵它所要求的总和并从中获知信息。",
    ),
    "limit_none": Text(
        "The hub cannot read sum or model as long as no {site} helps it: one that does can hand both over.",
        "只要没有{site}协助，中心就读不到总和与模型；任何一家协助者都能把它们交出去。",
    ),
    "limit_colluders": Text(
        "One {site}'s update stays hidden while at most {colluders} of {parties} work with a malicious "
        "hub. Beyond that it may not.",
        "在 {parties} 家中至多 {colluders} 家与恶意中心合谋时，单家{site}的更新保持隐藏；超过则不保证。",
    ),
    "limit_rosters": Text(
        "Two studies with nearly the same members can be compared; the difference of their sums tells "
        "of the member that changed.",
        "成员几乎相同的两次研究可以相互比较；总和之差会透露变动的那个成员。",
    ),
    "limit_integrity": Text(
        "A malicious hub can compute a wrong model; a malicious {site} can send a bad update. Neither "
        "would be noticed by the mathematics.",
        "恶意中心可以算出错误的模型，恶意{site}可以发送有害的更新；数学本身发现不了。",
    ),
    "limit_answer": Text(
        "Whoever answers predictions sees the rows asked about. Hiding them from it needs an enclave, "
        "which this study did not use.",
        "提供预测的一方能看到所询问的数据。要对它隐藏需要可信执行环境，本次研究没有使用。",
    ),
    "limit_quantum": Text(
        "Training traffic is not post-quantum: recorded today, a future quantum computer might read it.",
        "训练流量不抗量子：今天录下的流量，将来的量子计算机或许能够读取。",
    ),
    "limit_process": Text(
        "All parties ran in one process on one machine here. The cryptography is what runs between "
        "machines, the separation is not.",
        "此处各方在同一台机器的同一进程中运行。密码学与跨机器运行时相同，隔离则不同。",
    ),
    "limit_public": Text(
        "The comparisons here (by round, each alone, all in one place) were computed from rows in the "
        "open. That is possible only because these rows are public.",
        "此处的各项比较（逐轮、各自单独、全部集中）是直接由明文数据算出的；"
        "只因为这些数据本来就公开，才可以这样做。",
    ),
    "h_verify": Text("Check it yourself", "自己验证"),
    "verify_note": Text(
        "Offline, with nothing but the release and the public keys you trust. The first thing that does "
        "not hold is named.",
        "离线即可，只需发布的文件夹和你信任的公钥。第一处不成立的地方会被指出。",
    ),
    "h_about": Text("About the rows, and this run", "关于数据与本次运行"),
    "source": Text("Source", "来源"),
    "licence": Text("Licence", "许可"),
    "note": Text("Note", "说明"),
    "created": Text("Created", "生成时间"),
    "software": Text("Software", "软件"),
    "rounds": Text("Rounds", "轮次"),
    "rounds_value": Text(
        "{rounds} in {attempts} attempts, each a sum over at least {fewest} {sites}",
        "{rounds} 轮，共尝试 {attempts} 次，每轮至少 {fewest} 家{sites}求和",
    ),
    "secure_sum": Text("Secure sum", "安全求和"),
    "secure_sum_value": Text(
        "{n} sites; at most {c} may work with the hub; {t} shares open a mask; a round needs {m} sites, so "
        "{d} may drop out; {bits}-bit ring",
        "{n} 个站点；至多 {c} 个可与中心合谋；{t} 份份额可打开一个掩码；"
        "每轮需要 {m} 个站点，可掉线 {d} 个；{bits} 位环",
    ),
    "privacy": Text("Differential privacy", "差分隐私"),
    "privacy_note": Text(
        "none: this study's plan has no privacy budget, so no epsilon is claimed",
        "无：本研究的方案没有隐私预算，因此不声称任何 epsilon",
    ),
    "more_measures": Text("Further measures", "其他指标"),
    "measure_auc": Text("AUC", "AUC"),
    "measure_log_loss": Text("log loss", "对数损失"),
    "measure_brier": Text("Brier score", "Brier 分数"),
    "measure_perplexity": Text("perplexity", "困惑度"),
    "measure_token_loss": Text("loss of a token", "每个词元的损失"),
    "warnings": Text("Please note", "请注意"),
    "question": Text("Question", "问题"),
    "positive": Text("“Yes” means", "“是”表示"),
    # stages: name, what happens, what its bytes are
    "stage_collect": Text("collect", "采集"),
    "stage_encrypt": Text("encrypt", "加密"),
    "stage_federate": Text("federate", "联邦"),
    "stage_train": Text("train", "训练"),
    "stage_infer": Text("infer", "推理"),
    "stage_seal": Text("seal", "密封"),
    "stage_release": Text("release", "发布"),
    "does_collect": Text(
        "Each site reads its rows against a declared schema", "各站点按声明的模式读取自己的数据"
    ),
    "does_encrypt": Text(
        "Rows become an encrypted data set in the site's vault", "数据成为站点保险库中的加密数据集"
    ),
    "does_federate": Text("Sites and hub countersign who, what and how", "站点与中心会签：谁、什么、怎样"),
    "does_train": Text(
        "Local training; only a masked sum is ever opened", "本地训练；只有掩码后的总和会被打开"
    ),
    "does_infer": Text(
        "A question goes in sealed, the answer comes back sealed", "问题密封送入，答案密封返回"
    ),
    "does_seal": Text("The result is encrypted to its reader's key", "结果用读者的公钥加密"),
    "does_release": Text("Policy gate, certificate, log", "策略关口、证书、日志"),
    "bytes_collect": Text("read", "读取"),
    "bytes_encrypt": Text("at rest, encrypted", "加密存储"),
    "bytes_federate": Text("sent, signed", "签名发送"),
    "bytes_train": Text("sent, encrypted", "加密发送"),
    "bytes_infer": Text("sent, sealed", "密封发送"),
    "bytes_seal": Text("sealed", "已密封"),
    "bytes_release": Text("released", "已发布"),
    "zone_inside": Text("inside each {site}", "在每家{site}内部"),
    "zone_between": Text("between {sites} and hub", "{sites}与中心之间"),
    "zone_out": Text("to whoever may have it", "交给有权得到的人"),
    **PRIVACY_TEXTS,
    **ENCLAVE_TEXTS,
}
