"""One of each message, with every field set, and the bytes it has had since it was first sent."""

from __future__ import annotations

from worker.wire.job_record import JobRecord, Webhook
from worker.wire.messages import (
    Accepted,
    Answered,
    Chat,
    ChatMessage,
    Delta,
    DraftStats,
    Failed,
    Finished,
    Frame,
    GenerateJob,
    GenerationStats,
    Grammar,
    LogEntry,
    ModelInfo,
    Options,
    PredictionStats,
    Prompts,
    Rejected,
    Sampling,
    Timing,
    TokenLogprob,
    ToolCall,
    Tools,
    Trace,
    Usage,
    WorkerInfo,
)

_SAMPLING = Sampling(
    seed=7,
    max_tokens=16,
    min_tokens=1,
    temperature=0.5,
    top_p=0.75,
    top_k=3,
    min_p=0.25,
    stop=["end"],
    stop_token_ids=[2],
    presence_penalty=0.5,
    frequency_penalty=-0.5,
    repetition_penalty=1.5,
    logit_bias={5: -1.0},
    logprobs=2,
    ignore_eos=True,
)
_MODEL = ModelInfo("org/model", 2048, ["ar", "deer"], 1, "f00d")
_DELTA = Delta(
    "j1", 4, 1, [65, 66], "AB", "stop", [TokenLogprob(65, b"A", -0.5, [(66, b"B", -1.0)])]
)

MESSAGES: dict[str, tuple[object, str]] = {
    "chat job": (
        GenerateJob(
            job_id="j1",
            api_id="a1",
            model="org/model",
            tenant="t1",
            created=1.5,
            input=Chat([ChatMessage("user", "hi", "bob")]),
            sampling=_SAMPLING,
            n=2,
            stream=True,
            mode="deer",
            draft_length=4,
            timeout_s=9.5,
            cache_salt="salt",
        ),
        (
            "de000da66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca96f72672f6d6f6465"
            "6ca674656e616e74a27431a763726561746564cb3ff8000000000000a5696e70757482a47479"
            "7065a463686174a86d657373616765739183a4726f6c65a475736572a7636f6e74656e74a268"
            "69a46e616d65a3626f62a873616d706c696e67de000fa47365656407aa6d61785f746f6b656e"
            "7310aa6d696e5f746f6b656e7301ab74656d7065726174757265cb3fe0000000000000a5746f"
            "705f70cb3fe8000000000000a5746f705f6b03a56d696e5f70cb3fd0000000000000a473746f"
            "7091a3656e64ae73746f705f746f6b656e5f6964739102b070726573656e63655f70656e616c"
            "7479cb3fe0000000000000b16672657175656e63795f70656e616c7479cbbfe0000000000000"
            "b272657065746974696f6e5f70656e616c7479cb3ff8000000000000aa6c6f6769745f626961"
            "738105cbbff0000000000000a86c6f6770726f627302aa69676e6f72655f656f73c3a16e02a6"
            "73747265616dc3a46d6f6465a464656572ac64726166745f6c656e67746804a974696d656f75"
            "745f73cb4023000000000000aa63616368655f73616c74a473616c74"
        ),
    ),
    "prompts job": (
        GenerateJob(
            job_id="j1",
            api_id="a1",
            model="m",
            tenant="t1",
            created=1.5,
            input=Prompts(["hi", [1, 2]], echo=True),
            sampling=Sampling(seed=7),
        ),
        (
            "de0007a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74"
            "a27431a763726561746564cb3ff8000000000000a5696e70757483a474797065a770726f6d70"
            "7473a770726f6d70747392a26869920102a46563686fc3a873616d706c696e67de0001a47365"
            "656407"
        ),
    ),
    "grammar job": (
        GenerateJob(
            job_id="j1",
            api_id="a1",
            model="m",
            tenant="t1",
            created=1.5,
            input=Prompts(["hi"]),
            sampling=Sampling(seed=7, grammar=Grammar("regex", "a+", "guided_regex")),
        ),
        (
            "de0007a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74"
            "a27431a763726561746564cb3ff8000000000000a5696e70757482a474797065a770726f6d70"
            "7473a770726f6d70747391a26869a873616d706c696e67de0002a47365656407a76772616d6d"
            "617283a46b696e64a57265676578aa646566696e6974696f6ea2612ba5706172616dac677569"
            "6465645f7265676578"
        ),
    ),
    "tools job": (
        GenerateJob(
            job_id="j1",
            api_id="a1",
            model="m",
            tenant="t1",
            created=1.5,
            input=Chat(
                [
                    ChatMessage("assistant", "", tool_calls=[ToolCall("c1", "f", "{}")]),
                    ChatMessage("tool", "rain", tool_call_id="c1"),
                ],
                Tools([{"type": "function", "function": {"name": "f"}}], "hermes", "f"),
                {"mood": 1},
                add_generation_prompt=False,
                continue_final_message=True,
            ),
            sampling=Sampling(seed=7),
        ),
        (
            "de0007a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74"
            "a27431a763726561746564cb3ff8000000000000a5696e70757486a474797065a463686174a8"
            "6d657373616765739283a4726f6c65a9617373697374616e74a7636f6e74656e74a0aa746f6f"
            "6c5f63616c6c739183a26964a26331a46e616d65a166a9617267756d656e7473a27b7d83a472"
            "6f6c65a4746f6f6ca7636f6e74656e74a47261696eac746f6f6c5f63616c6c5f6964a26331a5"
            "746f6f6c7383ab646566696e6974696f6e739182a474797065a866756e6374696f6ea866756e"
            "6374696f6e81a46e616d65a166a673796e746178a66865726d6573a6666f72636564a166b274"
            "656d706c6174655f7661726961626c657381a46d6f6f6401b56164645f67656e65726174696f"
            "6e5f70726f6d7074c2b6636f6e74696e75655f66696e616c5f6d657373616765c3a873616d70"
            "6c696e67de0001a47365656407"
        ),
    ),
    "options job": (
        GenerateJob(
            job_id="j1",
            api_id="a1",
            model="m",
            tenant="t1",
            created=1.5,
            input=Prompts(["hi"]),
            sampling=Sampling(seed=7),
            mode="diffusion",
            options=Options(
                denoising_steps=4,
                block_length=8,
                confidence_threshold=0.5,
                unmasking_factor=1.5,
                remasking="margin",
                canvas_cache="prefix",
                acceptance="rejection",
                skip_verify_confidence=0.75,
                apd_mix_weight=0.25,
                apd_lookahead=16,
                apd_window=12,
                apd_max_parallel=6,
                apd_threshold=0.5,
                prediction="yes",
                suffixes=["a", "b"],
            ),
        ),
        (
            "de0009a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74"
            "a27431a763726561746564cb3ff8000000000000a5696e70757482a474797065a770726f6d70"
            "7473a770726f6d70747391a26869a873616d706c696e67de0001a47365656407a46d6f6465a9"
            "646966667573696f6ea76f7074696f6e73de000faf64656e6f6973696e675f737465707304ac"
            "626c6f636b5f6c656e67746808b4636f6e666964656e63655f7468726573686f6c64cb3fe000"
            "0000000000b0756e6d61736b696e675f666163746f72cb3ff8000000000000a972656d61736b"
            "696e67a66d617267696eac63616e7661735f6361636865a6707265666978aa61636365707461"
            "6e6365a972656a656374696f6eb6736b69705f7665726966795f636f6e666964656e6365cb3f"
            "e8000000000000ae6170645f6d69785f776569676874cb3fd0000000000000ad6170645f6c6f"
            "6f6b616865616410aa6170645f77696e646f770cb06170645f6d61785f706172616c6c656c06"
            "ad6170645f7468726573686f6c64cb3fe0000000000000aa70726564696374696f6ea3796573"
            "a8737566666978657392a161a162"
        ),
    ),
    "filled delta": (
        Delta("j1", 4, 1, [65, 66], "AB", "stop", None, ["A", "B"]),
        "9aa564656c7461a26a310401924142a24142a473746f70c092a141a142c0",
    ),
    "traced delta": (
        Delta("j1", 4, 1, [65], "A", trace=Trace(["A", "B"], 1, "C", 0.5)),
        "9aa564656c7461a26a3104019141a141c0c0c09492a141a14201a143cb3fe0000000000000",
    ),
    "finished, with statistics": (
        Finished(
            "j1",
            5,
            Usage(3, 2, 1),
            None,
            1,
            GenerationStats("spec_diff", True, 9),
            PredictionStats(6, 2),
        ),
        "99a866696e6973686564a26a310593030201c00193a9737065635f64696666c309920602c0",
    ),
    "finished, with its times": (
        Finished("j1", 5, Usage(3, 2, 1), timing=Timing(0.5, 0.25, 1.5)),
        (
            "99a866696e6973686564a26a310593030201c001c0c093cb3fe0000000000000cb3fd0000000"
            "000000cb3ff8000000000000"
        ),
    ),
    "traced job": (
        GenerateJob(
            job_id="j1",
            api_id="a1",
            model="m",
            tenant="t1",
            created=1.5,
            input=Prompts(["hi"]),
            sampling=Sampling(seed=7),
            trace_context={"traceparent": "00-1-2-01"},
        ),
        (
            "de0008a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74"
            "a27431a763726561746564cb3ff8000000000000a5696e70757482a474797065a770726f6d70"
            "7473a770726f6d70747391a26869a873616d706c696e67de0001a47365656407ad7472616365"
            "5f636f6e7465787481ab7472616365706172656e74a930302d312d322d3031"
        ),
    ),
    "accepted": (Accepted("j1", 3), "93a86163636570746564a26a3103"),
    "rejected": (
        Rejected("j1", 400, "too long", "max_tokens", "invalid_value"),
        (
            "96a872656a6563746564a26a31cd0190a8746f6f206c6f6e67aa6d61785f746f6b656e73ad69"
            "6e76616c69645f76616c7565"
        ),
    ),
    "delta": (
        _DELTA,
        (
            "9aa564656c7461a26a310401924142a24142a473746f70919441c40141cbbfe0000000000000"
            "919342c40142cbbff0000000000000c0c0"
        ),
    ),
    "finished": (
        Finished("j1", 5, Usage(3, 2, 1), DraftStats(8, [1, 0, 2]), 2),
        "99a866696e6973686564a26a31059303020192089301000202c0c0c0",
    ),
    "failed": (
        Failed("j1", 504, "timed out", "timeout"),
        "95a66661696c6564a26a31cd01f8a974696d6564206f7574a774696d656f7574",
    ),
    "answered": (
        Answered("q1", [1], ["a"], "a", {"eos_token": "e"}),
        "96a8616e737765726564a27131910191a161a16181a9656f735f746f6b656ea165",
    ),
    "frame": (
        Frame("w1", [Accepted("j1", 3), _DELTA]),
        (
            "92a277319293a86163636570746564a26a31039aa564656c7461a26a310401924142a24142a4"
            "73746f70919441c40141cbbfe0000000000000919342c40142cbbff0000000000000c0c0"
        ),
    ),
    "log entry": (
        LogEntry([_DELTA]),
        (
            "91919aa564656c7461a26a310401924142a24142a473746f70919441c40141cbbfe000000000"
            "0000919342c40142cbbff0000000000000c0c0"
        ),
    ),
    "job record": (
        JobRecord("f00d", True, True, "c1", {"k": "v"}, Webhook("https://h/", "s")),
        (
            "86b273797374656d5f66696e6765727072696e74a466303064ad696e636c7564655f75736167"
            "65c3b072657475726e5f746f6b656e5f696473c3a9637573746f6d5f6964a26331a86d657461"
            "6461746181a16ba176a7776562686f6f6b82a375726caa68747470733a2f2f682fa673656372"
            "6574a173"
        ),
    ),
    "worker": (
        WorkerInfo("w1", _MODEL, 64, 3, 2, {"tokens_per_s": 1.5}),
        (
            "86a46e616d65a27731a56d6f64656c85a46e616d65a96f72672f6d6f64656cad6d61785f6d6f"
            "64656c5f6c656ecd0800a56d6f64657392a26172a464656572a76372656174656401ab66696e"
            "6765727072696e74a466303064ae6d61785f62617463685f73697a6540ab6e756d5f72756e6e"
            "696e6703ab6e756d5f77616974696e6702a76d65747269637381ac746f6b656e735f7065725f"
            "73cb3ff8000000000000"
        ),
    ),
    "model": (
        _MODEL,
        (
            "85a46e616d65a96f72672f6d6f64656cad6d61785f6d6f64656c5f6c656ecd0800a56d6f6465"
            "7392a26172a464656572a76372656174656401ab66696e6765727072696e74a466303064"
        ),
    ),
}

# From before `Sampling` had more than 15 fields, which msgpack counts in a longer header, and from
# before deltas and endings had their last fields.
EARLIER: list[tuple[str, str]] = [
    (
        "chat job",
        (
            "8da66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca96f72672f6d6f64656ca6"
            "74656e616e74a27431a763726561746564cb3ff8000000000000a5696e70757482a474797065"
            "a463686174a86d657373616765739183a4726f6c65a475736572a7636f6e74656e74a26869a4"
            "6e616d65a3626f62a873616d706c696e67de000fa47365656407aa6d61785f746f6b656e7310"
            "aa6d696e5f746f6b656e7301ab74656d7065726174757265cb3fe0000000000000a5746f705f"
            "70cb3fe8000000000000a5746f705f6b03a56d696e5f70cb3fd0000000000000a473746f7091"
            "a3656e64ae73746f705f746f6b656e5f6964739102b070726573656e63655f70656e616c7479"
            "cb3fe0000000000000b16672657175656e63795f70656e616c7479cbbfe0000000000000b272"
            "657065746974696f6e5f70656e616c7479cb3ff8000000000000aa6c6f6769745f6269617381"
            "05cbbff0000000000000a86c6f6770726f627302aa69676e6f72655f656f73c3a16e02a67374"
            "7265616dc3a46d6f6465a464656572ac64726166745f6c656e67746804a974696d656f75745f"
            "73cb4023000000000000aa63616368655f73616c74a473616c74"
        ),
    ),
    (
        "prompts job",
        (
            "87a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74a274"
            "31a763726561746564cb3ff8000000000000a5696e70757483a474797065a770726f6d707473"
            "a770726f6d70747392a26869920102a46563686fc3a873616d706c696e67de0001a473656564"
            "07"
        ),
    ),
    (
        "grammar job",
        (
            "87a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74a274"
            "31a763726561746564cb3ff8000000000000a5696e70757482a474797065a770726f6d707473"
            "a770726f6d70747391a26869a873616d706c696e67de0002a47365656407a76772616d6d6172"
            "83a46b696e64a57265676578aa646566696e6974696f6ea2612ba5706172616dac6775696465"
            "645f7265676578"
        ),
    ),
    (
        "tools job",
        (
            "87a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74a274"
            "31a763726561746564cb3ff8000000000000a5696e70757486a474797065a463686174a86d65"
            "7373616765739283a4726f6c65a9617373697374616e74a7636f6e74656e74a0aa746f6f6c5f"
            "63616c6c739183a26964a26331a46e616d65a166a9617267756d656e7473a27b7d83a4726f6c"
            "65a4746f6f6ca7636f6e74656e74a47261696eac746f6f6c5f63616c6c5f6964a26331a5746f"
            "6f6c7383ab646566696e6974696f6e739182a474797065a866756e6374696f6ea866756e6374"
            "696f6e81a46e616d65a166a673796e746178a66865726d6573a6666f72636564a166b274656d"
            "706c6174655f7661726961626c657381a46d6f6f6401b56164645f67656e65726174696f6e5f"
            "70726f6d7074c2b6636f6e74696e75655f66696e616c5f6d657373616765c3a873616d706c69"
            "6e67de0001a47365656407"
        ),
    ),
    (
        "options job",
        (
            "89a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74a274"
            "31a763726561746564cb3ff8000000000000a5696e70757482a474797065a770726f6d707473"
            "a770726f6d70747391a26869a873616d706c696e67de0001a47365656407a46d6f6465a96469"
            "66667573696f6ea76f7074696f6e73de000faf64656e6f6973696e675f737465707304ac626c"
            "6f636b5f6c656e67746808b4636f6e666964656e63655f7468726573686f6c64cb3fe0000000"
            "000000b0756e6d61736b696e675f666163746f72cb3ff8000000000000a972656d61736b696e"
            "67a66d617267696eac63616e7661735f6361636865a6707265666978aa616363657074616e63"
            "65a972656a656374696f6eb6736b69705f7665726966795f636f6e666964656e6365cb3fe800"
            "0000000000ae6170645f6d69785f776569676874cb3fd0000000000000ad6170645f6c6f6f6b"
            "616865616410aa6170645f77696e646f770cb06170645f6d61785f706172616c6c656c06ad61"
            "70645f7468726573686f6c64cb3fe0000000000000aa70726564696374696f6ea3796573a873"
            "7566666978657392a161a162"
        ),
    ),
    (
        "chat job",
        (
            "8da66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca96f72672f6d6f64656ca6"
            "74656e616e74a27431a763726561746564cb3ff8000000000000a5696e70757482a474797065"
            "a463686174a86d657373616765739183a4726f6c65a475736572a7636f6e74656e74a26869a4"
            "6e616d65a3626f62a873616d706c696e678fa47365656407aa6d61785f746f6b656e7310aa6d"
            "696e5f746f6b656e7301ab74656d7065726174757265cb3fe0000000000000a5746f705f70cb"
            "3fe8000000000000a5746f705f6b03a56d696e5f70cb3fd0000000000000a473746f7091a365"
            "6e64ae73746f705f746f6b656e5f6964739102b070726573656e63655f70656e616c7479cb3f"
            "e0000000000000b16672657175656e63795f70656e616c7479cbbfe0000000000000b2726570"
            "65746974696f6e5f70656e616c7479cb3ff8000000000000aa6c6f6769745f626961738105cb"
            "bff0000000000000a86c6f6770726f627302aa69676e6f72655f656f73c3a16e02a673747265"
            "616dc3a46d6f6465a464656572ac64726166745f6c656e67746804a974696d656f75745f73cb"
            "4023000000000000aa63616368655f73616c74a473616c74"
        ),
    ),
    (
        "prompts job",
        (
            "87a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74a274"
            "31a763726561746564cb3ff8000000000000a5696e70757483a474797065a770726f6d707473"
            "a770726f6d70747392a26869920102a46563686fc3a873616d706c696e6781a47365656407"
        ),
    ),
    (
        "delta",
        (
            "98a564656c7461a26a310401924142a24142a473746f70919441c40141cbbfe0000000000000"
            "919342c40142cbbff0000000000000"
        ),
    ),
    ("finished", "96a866696e6973686564a26a31059303020192089301000202"),
    ("finished", "98a866696e6973686564a26a31059303020192089301000202c0c0"),
    (
        "finished, with statistics",
        "98a866696e6973686564a26a310593030201c00193a9737065635f64696666c309920602",
    ),
    (
        "frame",
        (
            "92a277319293a86163636570746564a26a310398a564656c7461a26a310401924142a24142a4"
            "73746f70919441c40141cbbfe0000000000000919342c40142cbbff0000000000000"
        ),
    ),
    (
        "log entry",
        (
            "919198a564656c7461a26a310401924142a24142a473746f70919441c40141cbbfe000000000"
            "0000919342c40142cbbff0000000000000"
        ),
    ),
    (
        "options job",
        (
            "89a66a6f625f6964a26a31a66170695f6964a26131a56d6f64656ca16da674656e616e74a274"
            "31a763726561746564cb3ff8000000000000a5696e70757482a474797065a770726f6d707473"
            "a770726f6d70747391a26869a873616d706c696e67de0001a47365656407a46d6f6465a96469"
            "66667573696f6ea76f7074696f6e738faf64656e6f6973696e675f737465707304ac626c6f63"
            "6b5f6c656e67746808b4636f6e666964656e63655f7468726573686f6c64cb3fe00000000000"
            "00b0756e6d61736b696e675f666163746f72cb3ff8000000000000a972656d61736b696e67a6"
            "6d617267696eac63616e7661735f6361636865a6707265666978aa616363657074616e6365a9"
            "72656a656374696f6eb6736b69705f7665726966795f636f6e666964656e6365cb3fe8000000"
            "000000ae6170645f6d69785f776569676874cb3fd0000000000000ad6170645f6c6f6f6b6168"
            "65616410aa6170645f77696e646f770cb06170645f6d61785f706172616c6c656c06ad617064"
            "5f7468726573686f6c64cb3fe0000000000000aa70726564696374696f6ea3796573a8737566"
            "666978657392a161a162"
        ),
    ),
    ("filled delta", "99a564656c7461a26a310401924142a24142a473746f70c092a141a142"),
    (
        "delta",
        (
            "99a564656c7461a26a310401924142a24142a473746f70919441c40141cbbfe0000000000000"
            "919342c40142cbbff0000000000000c0"
        ),
    ),
    (
        "frame",
        (
            "92a277319293a86163636570746564a26a310399a564656c7461a26a310401924142a24142a4"
            "73746f70919441c40141cbbfe0000000000000919342c40142cbbff0000000000000c0"
        ),
    ),
    (
        "log entry",
        (
            "919199a564656c7461a26a310401924142a24142a473746f70919441c40141cbbfe000000000"
            "0000919342c40142cbbff0000000000000c0"
        ),
    ),
]
