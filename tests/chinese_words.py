"""Words of which the corpora of the vocabulary's tests are drawn: a tokenizer of tests/small_models.py has no token for any."""

WORDS = (
    "自行车", "订单", "退款", "我们", "今天", "天气", "很好", "请问", "什么", "时候", "可以", "收到", "新的", "车轮",
)  # fmt: skip
