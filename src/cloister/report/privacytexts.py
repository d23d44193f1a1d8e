"""What the report says where a study claims differential privacy; part of the table in `texts.py`.

`{one}` is the unit in words ("one of the patients"), made by `privacywords.one_unit`.
"""

from __future__ import annotations

from typing import Final

from cloister.report.text import Text

__all__ = ["PRIVACY_TEXTS"]

PRIVACY_TEXTS: Final[dict[str, Text]] = {
    # headline and figures
    "unseen_private": Text(
        "Its accuracy on {rows} it never saw: {value}, with privacy (epsilon {epsilon})",
        "在它从未见过的{rows}上，准确率为 {value}，并有隐私保护（epsilon {epsilon}）",
    ),
    "alone_private": Text(
        "; each {site} alone with the same privacy: {low} to {high}",
        "；各家{site}在同样的隐私保护下单独训练：{low} 至 {high}",
    ),
    "without": Text(" Without privacy: ", "若不加隐私保护："),
    "without_alone": Text("each {site} alone {low} to {high}", "各家{site}单独训练 {low} 至 {high}"),
    "without_one_place": Text("all rows in one place {value}", "全部数据集中到一处 {value}"),
    "comma": Text(", ", "，"),
    "together_note_private": Text("with privacy; rows stayed where they are", "有隐私保护；数据留在原处"),
    "same_privacy_note": Text("with the same privacy; {value} without", "同样的隐私保护；若无保护为 {value}"),
    "same_privacy": Text("with the same privacy", "同样的隐私保护"),
    "without_note": Text("without privacy", "无隐私保护"),
    "epsilon": Text("Epsilon, at most", "Epsilon 至多"),
    "epsilon_note_colluders": Text(
        "even with {count} of {parties} {sites} helping the hub; {hub} with none",
        "即使 {parties} 家{sites}中有 {count} 家协助中心；无人协助则为 {hub}",
    ),
    "epsilon_note_hub": Text(
        "as long as no {site} helps the hub; {colluders} with {count} of {parties} helping it",
        "只要没有{site}协助中心；若 {parties} 家中有 {count} 家协助则为 {colluders}",
    ),
    "epsilon_note_local": Text("against everybody", "面对任何人"),
    # the unit
    "one_record": Text("one of the {rows}", "单个{rows}"),
    "one_unit": Text("one “{unit}”", "单个“{unit}”"),
    # the section
    "h_given": Text("What this gives away about any {one}", "关于{one}，这会透露多少"),
    "h_given_note": Text(
        "Had any {one} been left out, everybody would have seen nearly the same. Epsilon says how nearly: "
        "0 would be no difference at all; the larger it is, the more is given away. Delta, {delta}, is the "
        "chance that this comparison leaves out: about 1 in {chance}.",
        "即使去掉{one}的数据，所有人看到的也几乎相同。epsilon 说明有多接近：0 表示毫无差别，"
        "越大透露得越多。delta 为 {delta}，是这一比较所不计入的概率：约 {chance} 分之一。",
    ),
    "who_hub": Text("Against the hub and every reader of the model", "面对中心和模型的每一位读者"),
    "who_colluders": Text(
        "Against a hub that {count} of {parties} {sites} tell their noise",
        "面对从 {parties} 家{sites}中的 {count} 家获知噪声的中心",
    ),
    "who_everybody": Text("Against everybody, all other {sites} included", "面对任何人，包括其他所有{sites}"),
    "promised": Text("the plan promises at most {epsilon}", "方案承诺至多 {epsilon}"),
    "guess": Text(
        "Who can only toss a coin over whether {one} took part is right in 50 % of cases; after seeing all "
        "of this, in at most {value}.",
        "原本只能抛硬币来猜{one}是否参与的人，猜对的机会是 50%；看到这一切之后，至多 {value}。",
    ),
    "meter": Text(
        "Chance of a right guess: from 50 % to at most {value}", "猜对的机会：从 50% 到至多 {value}"
    ),
    "coin": Text("toss of a coin, 50 %", "抛硬币，50%"),
    "certain": Text("certain, 100 %", "确知，100%"),
    "worst_case": Text(
        "This is the worst case: it holds against somebody who knows all other rows, sees every round, and "
        "brings whatever else is known. Left out means that a row counts as empty; how many rows each "
        "{site} has is no secret.",
        "这是最坏的情况：即使对方知道其余所有数据、看到每一轮，并掌握其他任何已知信息，这个界限依然成立。"
        "“去掉”是指该行按空行计；每家{site}有多少行数据不是秘密。",
    ),
    "how": Text("How", "做法"),
    "how_distributed": Text(
        "Each step takes each row with a chance of {rate} and cuts its influence to a gradient of norm "
        "{clip}. Every {site} adds noise before it masks: what is counted of it has {noise} times that "
        "influence as its deviation, and nobody knows all of it.",
        "每一步以 {rate} 的概率取用每一行，并把它的影响限制为范数 {clip} 的梯度。"
        "每家{site}在加掩码之前加入噪声：计入的噪声，其标准差是该影响的 {noise} 倍，没有人知道全部噪声。",
    ),
    "how_local": Text(
        "Each step takes each row with a chance of {rate} and cuts its influence to a gradient of norm "
        "{clip}. Every {site} adds all the noise itself, of {noise} times that influence as its deviation.",
        "每一步以 {rate} 的概率取用每一行，并把它的影响限制为范数 {clip} 的梯度。"
        "每家{site}都独自加入全部噪声，其标准差是该影响的 {noise} 倍。",
    ),
    # budgets
    "h_budgets": Text("What each {site} has spent, and has left", "每家{site}用掉了多少，还剩多少"),
    "h_budgets_note": Text(
        "Each {site} set what may ever be learned from its rows, and its own ledger keeps count and "
        "refuses what goes beyond. The bar shows how much is used up; left is what one more release could "
        "be claimed with. Epsilons do not add up, so spent and left are not the cap together. All in "
        "epsilon; delta of the caps: {delta}.",
        "每家{site}自己规定了从其数据中总共可以获知多少，由自己的账本记账，超出即拒绝。条形表示已用的比例；"
        "“剩余”是再作一次发布时可以声明的值。epsilon 不能直接相加，所以已用与剩余之和不等于上限。"
        "均以 epsilon 计；各上限的 delta：{delta}。",
    ),
    "budget_used": Text("Used up", "已用比例"),
    "budget_cap": Text("Cap", "上限"),
    "budget_spent": Text("Spent", "已用"),
    "budget_left": Text("Left", "剩余"),
    # accuracy against epsilon
    "h_epsilon": Text("What privacy costs in accuracy", "隐私保护使准确率降低多少"),
    "h_epsilon_note": Text(
        "The same study with more noise and with less: a dot is the mean of {runs} runs, its bar one "
        "standard deviation. The ring is the run of this report.",
        "同一研究在更多或更少噪声下的结果：圆点是 {runs} 次运行的平均，竖线是一个标准差。"
        "圆环是本报告的这次运行。",
    ),
    "h_epsilon_line": Text(
        " The dashed line is the training of all rows in one place, without privacy.",
        "虚线是把全部数据集中到一处、不加隐私保护的训练。",
    ),
    "axis_epsilon": Text("Epsilon: smaller is more private", "Epsilon：越小越私密"),
    "this_study": Text("this study", "本次研究"),
    "no_privacy": Text("without privacy", "无隐私保护"),
    "c_epsilon": Text(
        "Accuracy against epsilon, from {first} at epsilon {low} to {last} at epsilon {high}; this study: "
        "{value} at epsilon {epsilon}",
        "准确率与 epsilon 的关系：epsilon 为 {low} 时 {first}，为 {high} 时 {last}；"
        "本次研究 epsilon 为 {epsilon} 时 {value}",
    ),
    # what working together brought, both ways
    "h_accuracy_private": Text(
        " Filled: with the same privacy, epsilon {epsilon}; the others' are means of {runs} runs. Hollow: "
        "trained without privacy, so that nothing bounds what it gives away.",
        "实心：同样的隐私保护，epsilon {epsilon}，除共同训练外均为 {runs} 次运行的平均。空心："
        "训练时不加隐私保护，其透露的信息没有任何 epsilon 可以界定。",
    ),
    "h_accuracy_bare": Text(
        " The model trained together is private; the others were trained without privacy.",
        "共同训练的模型有隐私保护；其余模型在训练时没有隐私保护。",
    ),
    "c_accuracy_private": Text(
        "Accuracy of the model trained together with privacy, and of the others, each with the same "
        "privacy and without any",
        "共同训练且有隐私保护的模型的准确率，以及其余模型在同样保护下和无保护时的准确率",
    ),
    "with_privacy": Text("private", "有保护"),
    "bare": Text("without", "无保护"),
    # the audit
    "h_audit": Text("An attack on the claim", "对声明的攻击"),
    "audit_how": Text(
        "{canaries} made-up rows were put in or left out by the toss of a coin, and an attacker guessed "
        "which from what the hub sees. The guesses show epsilon to be at least {bound}, with {confidence} "
        "confidence; at most {claimed} is claimed.",
        "用抛硬币决定放入或不放入 {canaries} 行人造数据，由攻击者根据中心所见进行猜测。"
        "猜测结果表明 epsilon 至少为 {bound}（置信度 {confidence}）；声明为至多 {claimed}。",
    ),
    "audit_consistent": Text(
        "That is consistent with the claim. An attack can refute a claim, never prove it.",
        "这与声明一致。攻击可以推翻声明，但不能证明声明。",
    ),
    "audit_violates": Text(
        "That violates the claim: do not rely on it.", "这与声明相矛盾：请不要依赖该声明。"
    ),
    "audit_shown": Text("shown: at least {bound}", "测得至少 {bound}"),
    "audit_claimed": Text("claimed: at most {claimed}", "声明至多 {claimed}"),
    "audit_none": Text(
        "None was run. An attack can refute a claim, never prove it. This runs one on the release:",
        "尚未运行。攻击可以推翻声明，但不能证明声明。以下命令对发布的结果进行一次攻击：",
    ),
    # public rows
    "shown_public": Text(
        "The accuracies and curves of this page were computed from rows in the open, and are charged to no "
        "budget. They may be shown only because this case declares its rows public.",
        "本页的准确率和曲线是由明文数据直接算出的，没有计入任何预算；只因为本案例声明其数据是公开的，"
        "才可以展示。",
    ),
    "shown_private": Text(
        "The one accuracy on this page was computed from test rows, and no epsilon here counts it. No "
        "further one, by round or by epsilon, and no comparison is shown: these rows are not declared "
        "public.",
        "本页唯一的准确率由测试数据算出，此处的 epsilon 都没有计入它。"
        "不再展示其他准确率（逐轮或随 epsilon 变化），也不作比较：这些数据没有声明为公开。",
    ),
    # elsewhere on the page
    "noised": Text("with noise", "加噪后可见"),
    "h_sees_note_private": Text(
        " “With noise” is what epsilon bounds.", "“加噪后可见”的内容即 epsilon 所限定的内容。"
    ),
    "privacy_note_private": Text(
        "epsilon {hub} against the hub and every reader, {colluders} with {count} of {parties} {sites} "
        "telling the hub their noise, at delta {delta}, for any {one}",
        "面对中心和所有读者 epsilon 为 {hub}；若 {parties} 家{sites}中有 {count} 家把噪声告诉中心则为 "
        "{colluders}；delta 为 {delta}，针对{one}",
    ),
    "privacy_note_local": Text(
        "epsilon {hub} against everybody, at delta {delta}, for any {one}",
        "面对任何人 epsilon 为 {hub}，delta 为 {delta}，针对{one}",
    ),
    "does_federate_private": Text(
        "Sites and hub countersign who, what, how, and at which budget",
        "站点与中心会签：谁、什么、怎样、用多少预算",
    ),
    "does_train_private": Text(
        "Local training, cut and noised; only a masked sum is ever opened",
        "本地训练，限幅并加噪；只有掩码后的总和会被打开",
    ),
    "does_release_private": Text("Policy gate, certificate, debits, log", "策略关口、证书、扣减、日志"),
    # limits
    "limit_epsilon": Text(
        "Epsilon bounds what anybody may learn about {one}; it does not make it nothing. What holds for "
        "many of them the model does tell: that is what it is for.",
        "epsilon 限定的是任何人对{one}能了解多少，并不等于零。对许多人共同成立的规律，模型会说出来："
        "这正是它的用途。",
    ),
    "limit_repeats": Text(
        "Each further release from the same rows gives away more. Each {site}'s ledger adds it up and "
        "refuses beyond its cap; that a {site} keeps one ledger, and adds its noise, is its own word.",
        "从同一批数据再次发布会透露更多。每家{site}的账本会累计，超出上限即拒绝；"
        "至于{site}只有一本账、并确实加了噪声，只有它自己的承诺。",
    ),
    "limit_noise": Text(
        "If more than {count} of {parties} {sites} tell the hub their noise, or leave it out, epsilon is "
        "larger than stated.",
        "若 {parties} 家{sites}中有超过 {count} 家把噪声告诉中心，或不加噪声，epsilon 会大于所声明的值。",
    ),
    "limit_sum_private": Text(
        "The hub sees each round's sum, with noise, and the model. A malicious hub can steer the sums it "
        "asks for; what it learns about {one} stays within epsilon.",
        "中心能看到每轮加噪后的总和与模型。恶意的中心可以操纵它所要求的总和，"
        "但它对{one}所能获知的仍在 epsilon 之内。",
    ),
    "limit_rosters_private": Text(
        "Epsilon speaks of {one}, not of a whole {site}: two studies with nearly the same members can be "
        "compared, and the difference tells of the member that changed.",
        "epsilon 说的是{one}，而不是整家{site}：成员几乎相同的两次研究可以相互比较，"
        "差别会透露变动的那个成员。",
    ),
    "limit_public_private": Text(
        "The comparisons here (by round, by epsilon, each alone, all in one place) were computed from rows "
        "in the open and are charged to no budget. That is possible only because these rows are public.",
        "此处的各项比较（逐轮、随 epsilon、各自单独、全部集中）是直接由明文数据算出的，没有计入任何预算；"
        "只因为这些数据本来就公开，才可以这样做。",
    ),
    # the terminal
    "told_privacy": Text(
        "Privacy: epsilon {hub} against the hub and every reader, {colluders} with {count} of {parties} "
        "{sites} helping the hub; delta {delta}",
        "隐私：面对中心和所有读者 epsilon 为 {hub}，若 {parties} 家{sites}中有 {count} 家协助中心则为 "
        "{colluders}；delta 为 {delta}",
    ),
    "told_privacy_local": Text(
        "Privacy: epsilon {hub} against everybody; delta {delta}",
        "隐私：面对任何人 epsilon 为 {hub}；delta 为 {delta}",
    ),
    "told_budget": Text(
        "Budget of each {site}: epsilon {cap} in all, {spent} spent, {left} left for one more release",
        "每家{site}的预算：epsilon 总共 {cap}，已用 {spent}，还可用于一次发布的有 {left}",
    ),
    "told_budget_least": Text(
        "Budget of {name}, the least left: epsilon {cap} in all, {spent} spent, {left} left for one more "
        "release",
        "{name} 的预算（剩余最少）：epsilon 总共 {cap}，已用 {spent}，还可用于一次发布的有 {left}",
    ),
}
