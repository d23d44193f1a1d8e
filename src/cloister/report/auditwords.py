"""Every sentence of an audit's page and of its summary, in English and Chinese, in one table.

`{name}` marks what a sentence takes; both languages take the same names. Checks, bounds and views are
looked up by what the report calls them.
"""

from __future__ import annotations

from typing import Final

from cloister.report.texts import Language, Text

__all__ = ["AUDIT_TEXTS", "say_audit"]


def say_audit(lang: Language, key: str, **values: object) -> str:
    """Return the sentence called `key`, its places filled."""
    return AUDIT_TEXTS[key].to(lang).format(**values)


AUDIT_TEXTS: Final[dict[str, Text]] = {
    "title": Text("Audit", "审计"),
    "skip": Text("Skip to the findings", "跳到结果"),
    "consistent with the claim": Text("Consistent with the claim", "与声明一致"),
    "violates the claim": Text("Violates the claim", "违反声明"),
    "memorised": Text("Remembers what was planted", "记住了植入的内容"),
    "lead memorised": Text(
        "Secrets that were planted among the rows of “{study}” can be told from others by its model. Epsilon "
        "{claimed} is claimed, and the attacks show that it is above {bound} (confidence {confidence}), "
        "which is no contradiction: a claim per row does not speak of a secret that stands in many rows.",
        "植入“{study}”数据行中的秘密可以从其模型中被辨认出来。研究声明 epsilon 为 {claimed}，"
        "攻击表明其大于 {bound}（置信度 {confidence}），两者并不矛盾：按行的声明并不涵盖出现在多行中的秘密。",
    ),
    "lead memorised unit": Text(
        "Secrets that were planted among the rows of “{study}” can be told from others by its model. Epsilon "
        "{claimed} is claimed, and the attacks show that it is above {bound} (confidence {confidence}), "
        "which is no contradiction: the claim bounds how much is learnt of one {unit}, and so much may show.",
        "植入“{study}”数据行中的秘密可以从其模型中被辨认出来。研究声明 epsilon 为 {claimed}，"
        "攻击表明其大于 {bound}（置信度 {confidence}），两者并不矛盾："
        "声明限定的是能得知单个 {unit} 多少信息，这一限度内的信息仍可能显现。",
    ),
    "lead memorised none": Text(
        "Secrets that were planted among the rows of “{study}” can be told from others by its model. No "
        "privacy was claimed.",
        "植入“{study}”数据行中的秘密可以从其模型中被辨认出来。研究没有声明任何隐私保护。",
    ),
    "no claim": Text("No privacy was claimed", "没有声明任何隐私保护"),
    "lead consistent": Text(
        "The attacks show that epsilon is above {bound} (confidence {confidence}). The study “{study}” "
        "claims epsilon "
        "{claimed}. That is no contradiction; it is no proof either.",
        "攻击表明 epsilon 大于 {bound}（置信度 {confidence}）。研究“{study}”声明为 {claimed}。"
        "两者并不矛盾，但这也不是证明。",
    ),
    "lead violates": Text(
        "The attacks show that epsilon is above {bound} (confidence {confidence}). The study “{study}” "
        "claims epsilon "
        "{claimed}.",
        "攻击表明 epsilon 大于 {bound}（置信度 {confidence}）。研究“{study}”声明为 {claimed}。",
    ),
    "lead failed": Text(
        " The mechanism is not the one that was accounted for: {checks}.",
        "运行的机制与所核算的不符：{checks}。",
    ),
    "lead chance none": Text(
        "Secrets that were planted among the rows of “{study}” were not told from others by its model. That "
        "is no guarantee, and none is claimed: other rows may be remembered.",
        "植入“{study}”数据行中的秘密无法从其模型中辨认出来。这不是保证，研究也没有声明任何保证："
        "其他数据行仍可能被记住。",
    ),
    "lead none": Text(
        "The study “{study}” has no privacy budget, so there is nothing to hold the attacks against. "
        "Below is "
        "what they found.",
        "研究“{study}”没有隐私预算，因此没有可与攻击对照的声明。以下是攻击的发现。",
    ),
    "own rows": Text(
        "Owners' rows were attacked. Membership and read-back rows below depend on them: keep this "
        "page with "
        "their owner.",
        "本次攻击使用了数据所有者的真实数据。下面的成员推断与数据还原结果依赖于这些数据："
        "请只由其所有者保存本页。",
    ),
    "synthetic rows": Text(
        "No row of anybody was used: canaries are synthetic, and so are the rows that were attacked.",
        "没有使用任何人的数据：金丝雀是合成的，被攻击的数据行也是合成的。",
    ),
    "claimed": Text("Claimed", "声明"),
    "claimed note": Text(
        "epsilon at delta {delta}, against {adversary}", "delta 为 {delta} 时的 epsilon，对手为{adversary}"
    ),
    "bound": Text("Shown by attack", "攻击所示"),
    "bound note": Text(
        "epsilon is above this, at confidence {confidence}", "epsilon 高于此值，置信度 {confidence}"
    ),
    "membership": Text("Membership", "成员推断"),
    "membership note": Text(
        "chance to rank a member higher; 50 % is guessing", "把成员排在前面的概率；50% 等于猜测"
    ),
    "adversary hub": Text("hub and readers", "中心与读者"),
    "adversary colluders": Text("a hub with colluding sites", "与部分站点合谋的中心"),
    "none": Text("none", "无"),
    "h bounds": Text("What the canaries showed", "金丝雀显示了什么"),
    "h bounds note": Text(
        "{each} synthetic rows were put in or left out by a coin, in each of {runs} runs of the plan's "
        "mechanism. From what the hub sees, an adversary who knows everything else guessed which were "
        "in. A bound "
        "says what the guesses rule out.",
        "在方案机制的 {runs} 次运行中，每次都用掷硬币决定是否放入 {each} 行合成数据。"
        "知道其余一切的对手根据中心所见猜测放入了哪些。下界表示这些猜测排除了什么。",
    ),
    "c bounds": Text(
        "Lower bounds on epsilon, with the claimed {claimed} as a line",
        "epsilon 的下界，竖线为声明值 {claimed}",
    ),
    "attack": Text("Seen", "所见"),
    "method": Text("Bound", "下界"),
    "epsilon": Text("Epsilon", "Epsilon"),
    "confidence": Text("Confidence", "置信度"),
    "guesses": Text("Right of guesses", "猜对 / 猜测"),
    "white-box": Text("sums", "总和"),
    "black-box": Text("final model", "最终模型"),
    "independent runs": Text("many runs", "多次运行"),
    "f-DP": Text("one run, f-DP", "单次运行，f-DP"),
    "f-DP, epsilon and delta": Text("one run, epsilon and delta alone", "单次运行，仅用 epsilon 与 delta"),
    "Steinke": Text("one run, Steinke et al.", "单次运行，Steinke 等"),
    "one canary": Text("one canary, plain test", "单个金丝雀，直接检验"),
    "h checks": Text("Is it the mechanism that was accounted for?", "运行的是所核算的机制吗？"),
    "h checks note": Text(
        "Measured on the mechanism's integers, with synthetic rows. More noise than claimed breaks no claim.",
        "用合成数据在机制的整数上测量。噪声多于声明并不违反声明。",
    ),
    "check": Text("Check", "检查"),
    "holds": Text("Holds", "成立"),
    "fails": Text("Fails", "不成立"),
    "measured": Text("Measured", "测得"),
    "result": Text("Result", "结果"),
    "contribution": Text(
        "Longest part of one row in a sum, in clips", "单行在总和中的最大份量（以裁剪界为单位）"
    ),
    "sample sizes": Text("Rows in a step, mean; and their spread", "每步的行数（均值），以及其离散程度"),
    "noise shares": Text("Least noise of one site, in sensitivities", "单个站点的最小噪声（以敏感度为单位）"),
    "summed noise": Text("Noise of a sum, in sensitivities", "总和的噪声（以敏感度为单位）"),
    "divisor": Text("Length of the step on a known sum", "对已知总和所走的步长"),
    "h language": Text("What was remembered", "记住了什么"),
    "h language note rehearsed": Text(
        "Made-up secrets were planted among {rows} rows, and the plan's training was run anew. Exposure says "
        "in bits how much easier the model makes it to guess a planted secret; at chance it is 1.44 bits on "
        "average, whatever the model.",
        "在 {rows} 行数据中植入了虚构的秘密，并重新运行了方案的训练。"
        "暴露度以比特表示模型使猜中植入秘密容易了多少；"
        "若模型一无所知，平均为 1.44 比特。",
    ),
    "h language note planted": Text(
        "The finished model was asked for secrets that its owner had planted. Exposure says in bits how much "
        "easier the model makes it to guess one; at chance it is 1.44 bits on average, whatever the model.",
        "向训练完成的模型询问了其所有者植入的秘密。暴露度以比特表示模型使猜中植入秘密容易了多少；"
        "若模型一无所知，平均为 1.44 比特。",
    ),
    "c exposure": Text(
        "Mean exposure of planted secrets in bits, beside chance; claimed epsilon: {claimed}",
        "植入秘密的平均暴露度（比特），与偶然水平对照；声明的 epsilon：{claimed}",
    ),
    "planted": Text("{run}, in {copies} rows", "{run}，出现在 {copies} 行"),
    "as planned": Text("as planned", "按方案"),
    "without noise": Text("without noise", "不加噪声"),
    "the model": Text("the model", "该模型"),
    "at chance": Text("at chance", "处于偶然水平"),
    "run": Text("Model", "模型"),
    "copies": Text("Rows of each", "每个的行数"),
    "secrets": Text("Secrets", "秘密数"),
    "exposure": Text("Exposure, bits", "暴露度（比特）"),
    "exposure note": Text("of at most {space} bits; 1.44 is chance", "最大 {space} 比特；1.44 为偶然水平"),
    "most bits": Text("At most", "最大"),
    "fitted": Text("By a fitted law", "按拟合分布"),
    "p value": Text("Chance of that", "偶然发生的概率"),
    "said": Text(
        "{run}: asked for {asked} secrets, it said {extracted} of them in {texts} texts, which held {found} "
        "identifiers in all. {verdict}, p {p}.",
        "{run}：询问了 {asked} 个秘密，在 {texts} 段文本中说出了其中 {extracted} 个，"
        "文本共含 {found} 个标识符。{verdict}，p {p}。",
    ),
    "said nothing": Text("{run}: {verdict}, p {p}.", "{run}：{verdict}，p {p}。"),
    "condition copies": Text(
        "A secret that stands in k rows is protected by about k times the epsilon of a row: its exposure is "
        "measured, not promised.",
        "出现在 k 行中的秘密所受的保护约为单行 epsilon 的 k 倍：其暴露度是测得的，而非承诺的。",
    ),
    "condition unit": Text(
        "All rows of a planted secret are those of one {unit}, whom the claim is about.",
        "植入秘密的所有行同属一个 {unit}，声明正是针对其整体。",
    ),
    "condition others": Text(
        "A model that knows none of the planted secrets may still know rows that are easier to remember.",
        "不知道任何植入秘密的模型仍可能知道更容易记住的数据行。",
    ),
    "condition model": Text(
        "The finished model was asked. What was planted was among one owner's rows.",
        "询问的是训练完成的模型。植入的内容位于某一所有者的数据行中。",
    ),
    "condition losses": Text(
        "The adversary of the canaries sees the final model's losses alone, in one run.",
        "金丝雀的对手只看到一次运行中最终模型的损失。",
    ),
    "own texts": Text(
        "Owners' rows were trained on beside what was planted. The findings below depend on them: keep this "
        "page with their owner.",
        "除植入内容外，还用数据所有者的真实数据进行了训练。以下结果依赖于这些数据：请只由其所有者保存本页。",
    ),
    "synthetic texts": Text(
        "No row of anybody was looked at: what was planted is made up.",
        "没有查看任何人的数据：植入的内容是虚构的。",
    ),
    "h inversion": Text("Rows read back", "数据还原"),
    "h inversion note": Text(
        "What an attacker could read back if it saw each of these: similarity to the nearest true row, "
        "100 % for the "
        "row itself. Chance is what rows of other people reach. The hub sees the last ones alone; "
        "without the "
        "masks it would see the first.",
        "如果攻击者看到下列各项，能还原到什么程度：与最近的真实数据行的相似度，100% 即该行本身。"
        "“偶然”是别人的数据行能达到的水平。中心只能看到后面几项；没有掩码时它会看到前面几项。",
    ),
    "c inversion": Text("Similarity of what is read back, beside chance", "还原结果的相似度，与偶然水平对照"),
    "view": Text("View", "视角"),
    "similarity": Text("Similarity", "相似度"),
    "chance": Text("Chance", "偶然"),
    "exact": Text("Read back exactly", "完全还原"),
    "one row": Text("A site with one row, unprotected", "只有一行的站点，未受保护"),
    "one site": Text("One site's update, unprotected", "单个站点的更新，未受保护"),
    "sum": Text("The sum over sites", "各站点之和"),
    "noised sum": Text("The sum with its noise", "加噪后的总和"),
    "masked": Text("One site's update, masked", "单个站点的更新，带掩码"),
    "h membership": Text("Who was in", "谁在其中"),
    "h membership note": Text(
        "{models} models were trained, each on a random half of {rows} rows; from the answers of a "
        "model and of "
        "the others, each row was guessed to be in or out (LiRA). No epsilon follows from it: rows of "
        "one model "
        "depend on each other.",
        "训练了 {models} 个模型，每个使用 {rows} 行的随机一半；"
        "根据一个模型与其他模型的输出猜测每一行是否在其中（LiRA）。由此不能得出 epsilon："
        "同一模型的各行相互依赖。",
    ),
    "few rows": Text("There were too few rows to attack.", "数据行太少，无法攻击。"),
    "auc": Text("Ranks a member higher", "把成员排在前面"),
    "accuracy": Text("Right answers", "回答正确"),
    "hits at 1": Text("Members found at 1 % false alarms", "误报率 1% 时找出的成员"),
    "hits at 10": Text("Members found at 10 % false alarms", "误报率 10% 时找出的成员"),
    "guessing": Text("guessing: {value}", "猜测：{value}"),
    "h conditions": Text("What this holds under, and what it does not say", "成立的条件，以及它没有说的"),
    "condition mechanism": Text(
        "The plan's mechanism was run anew on one machine. That the sites of the study ran it is not shown.",
        "方案的机制是在一台机器上重新运行的。这并不表明研究的各站点确实运行了它。",
    ),
    "condition adversary": Text(
        "The adversary of the canaries knows model, other rows and canaries at each of {steps} steps, "
        "and not the "
        "coins, the samples and {shares} shares of noise.",
        "金丝雀的对手知道 {steps} 步中每一步的模型、其他数据行和金丝雀，但不知道硬币、抽样和 {shares} "
        "份噪声。",
    ),
    "condition weak": Text(
        "A low bound is the absence of evidence, not evidence of privacy.",
        "下界低只是没有证据，并不是隐私的证据。",
    ),
    "condition hidden": Text(
        "The plan hides sums from the hub: the views of sums are those of a site that colludes with it.",
        "方案对中心隐藏总和：这里总和的视角属于与中心合谋的站点。",
    ),
    "condition rows": Text("Rows that were attacked: {rows}.", "被攻击的数据行数：{rows}。"),
    "h about": Text("About this audit", "关于本次审计"),
    "plan": Text("Plan, SHA-256", "方案 SHA-256"),
    "mechanism": Text("Mechanism", "机制"),
    "mechanism value": Text(
        "{mode}, unit {unit}, noise multiplier {noise}, rate {rate}, {steps} steps",
        "{mode}，单位 {unit}，噪声倍数 {noise}，抽样率 {rate}，{steps} 步",
    ),
    "both": Text("Both epsilons", "两个 epsilon"),
    "both value": Text(
        "{hub} against the hub, {colluders} with colluding sites", "对中心 {hub}，有站点合谋时 {colluders}"
    ),
    "created": Text("Created", "生成时间"),
    "took": Text("Took", "用时"),
}
