"""Tiny pipelines of many tasks, made on the spot with random weights, and something for each to work on."""

from __future__ import annotations

import importlib
import json

import pytest

from fix_hf import VOCAB, _seeded, _without_types

SMALL = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
T5 = {"d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 1, "num_heads": 2}
PATCHES = {"image_size": 32, "patch_size": 16}
RATE_HZ = 16_000


def sound(seconds, seed=0):
    """Return mono noise."""
    np = pytest.importorskip("numpy")
    return np.random.default_rng(seed).normal(size=int(RATE_HZ * seconds)).astype(np.float32)


def picture(shade=90):
    """Return a small image whose colours change from left to right."""
    image = pytest.importorskip("PIL.Image")
    made = image.new("RGB", (48, 32), (shade, 40, 200))
    for x in range(48):
        made.putpixel((x, x % 32), (5 * x, shade, 0))
    return made


@pytest.fixture
def pipeline_for(hf, tokenizer, tmp_path):
    """Make a pipeline of its own for a task."""
    makers = Makers(hf, tokenizer, tmp_path)

    def make(task, **options):
        return getattr(makers, task.replace("-", "_"))(**options)

    return make


class Makers:
    """One method per task, named like it."""

    def __init__(self, hf, tokenizer, folder):
        self.hf = hf
        self.folder = folder
        self.words = _without_types(tokenizer)
        self.words.add_special_tokens({"mask_token": "w0"})

    def _model(self, name, config):
        return _seeded(lambda: getattr(self.hf, name)(config))

    def _needs(self, task):
        """Skip where this version of transformers has no such pipeline."""
        known = importlib.import_module("transformers.pipelines").SUPPORTED_TASKS
        if task.partition("_")[0] not in known:
            pytest.skip(f"transformers {self.hf.__version__} has no {task} pipeline")

    def _pipe(self, task, name, config, **parts):
        return self.hf.pipeline(task, self._model(name, config), **parts)

    def _image_processor(self, name, **options):
        pytest.importorskip("PIL", reason="images need Pillow")
        # Version 5 has a kind of each that needs no torchvision, under a name of its own.
        made = getattr(self.hf, f"{name}Pil", None) or getattr(self.hf, name)
        return made(**options)

    def _bert(self, head, **options):
        config = self.hf.BertConfig(vocab_size=VOCAB, max_position_embeddings=64, pad_token_id=0, **SMALL, **options)
        return {"name": f"BertFor{head}", "config": config}

    def _vit(self, task, name, **options):
        processor = self._image_processor("ViTImageProcessor", size={"height": 32, "width": 32})
        return self._pipe(task, name, self.hf.ViTConfig(**SMALL, **PATCHES, **options), image_processor=processor)

    def fill_mask(self):
        return self._pipe("fill-mask", **self._bert("MaskedLM"), tokenizer=self.words)

    def token_classification(self, **options):
        return self._pipe("token-classification", **self._bert("TokenClassification"), tokenizer=self.words, **options)

    def question_answering(self):
        self._needs("question-answering")
        return self._pipe("question-answering", **self._bert("QuestionAnswering"), tokenizer=self.words)

    def document_question_answering(self):
        self.words.add_special_tokens({"cls_token": "<bos>", "sep_token": "<eos>"})
        self.words.padding_side, self.words.model_max_length = "right", 32
        config = self.hf.LayoutLMConfig(vocab_size=VOCAB, max_position_embeddings=64, pad_token_id=0, **SMALL)
        name = "LayoutLMForQuestionAnswering"
        return self._pipe("document-question-answering", name, config, tokenizer=self.words)

    def zero_shot_classification(self):
        labels = {"entailment": 0, "neutral": 1, "contradiction": 2}
        bert = self._bert("SequenceClassification", label2id=labels, id2label={n: k for k, n in labels.items()})
        return self._pipe("zero-shot-classification", **bert, tokenizer=self.words)

    def image_classification(self):
        return self._vit("image-classification", "ViTForImageClassification", num_labels=3)

    def image_feature_extraction(self):
        return self._vit("image-feature-extraction", "ViTModel")

    def object_detection(self):
        config = self.hf.YolosConfig(**SMALL, image_size=[32, 32], patch_size=16, num_detection_tokens=3, num_labels=2)
        processor = self._image_processor("YolosImageProcessor", size={"shortest_edge": 32, "longest_edge": 48})
        return self._pipe("object-detection", "YolosForObjectDetection", config, image_processor=processor)

    def image_segmentation(self):
        config = self.hf.SegformerConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
            num_labels=3,
        )
        processor = self._image_processor("SegformerImageProcessor", size={"height": 32, "width": 32})
        name = "SegformerForSemanticSegmentation"
        return self._pipe("image-segmentation", name, config, image_processor=processor)

    def depth_estimation(self):
        config = self.hf.GLPNConfig(
            num_encoder_blocks=2,
            depths=[1, 1],
            sr_ratios=[2, 1],
            hidden_sizes=[8, 16],
            patch_sizes=[7, 3],
            strides=[4, 2],
            num_attention_heads=[1, 2],
            mlp_ratios=[2, 2],
            decoder_hidden_size=16,
        )
        processor = self._image_processor("GLPNImageProcessor", size_divisor=32)
        return self._pipe("depth-estimation", "GLPNForDepthEstimation", config, image_processor=processor)

    def zero_shot_image_classification(self):
        text = {**SMALL, "vocab_size": VOCAB, "max_position_embeddings": 32, "eos_token_id": 2}
        config = self.hf.CLIPConfig(text_config=text, vision_config={**SMALL, **PATCHES}, projection_dim=8)
        processor = self._image_processor(
            "CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        parts = {"tokenizer": self.words, "image_processor": processor}
        return self._pipe("zero-shot-image-classification", "CLIPModel", config, **parts)

    def zero_shot_audio_classification(self):
        text = {**SMALL, "vocab_size": VOCAB, "max_position_embeddings": 64, "pad_token_id": 0, "projection_dim": 16}
        audio = {
            "hidden_size": 16,
            "patch_embeds_hidden_size": 8,
            "depths": [1, 1],
            "num_attention_heads": [2, 2],
            "num_hidden_layers": 2,
            "spec_size": 32,
            "window_size": 4,
            "patch_size": 4,
            "patch_stride": (4, 4),
            "num_mel_bins": 8,
            "projection_dim": 16,
        }
        config = self.hf.ClapConfig(text_config=text, audio_config=audio, projection_dim=16)
        extractor = self.hf.ClapFeatureExtractor(
            8, sampling_rate=RATE_HZ, hop_length=320, max_length_s=1, truncation="rand_trunc", padding_side="left"
        )
        parts = {"tokenizer": self.words, "feature_extractor": extractor}
        return self._pipe("zero-shot-audio-classification", "ClapModel", config, **parts)

    def zero_shot_object_detection(self):
        text = {**SMALL, "vocab_size": VOCAB, "max_position_embeddings": 16, "eos_token_id": 2}
        config = self.hf.OwlViTConfig(text_config=text, vision_config={**SMALL, **PATCHES}, projection_dim=16)
        processor = self._image_processor("OwlViTImageProcessor", size={"height": 32, "width": 32})
        parts = {"tokenizer": self.words, "image_processor": processor}
        return self._pipe("zero-shot-object-detection", "OwlViTForObjectDetection", config, **parts)

    def _t5(self, task):
        self._needs(task)
        config = self.hf.T5Config(vocab_size=VOCAB, **T5, decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
        options = {"max_new_tokens": 4, "num_beams": 1}
        return self._pipe(task, "T5ForConditionalGeneration", config, tokenizer=self.words, **options)

    def text2text_generation(self):
        return self._t5("text2text-generation")

    def summarization(self):
        return self._t5("summarization")

    def translation(self):
        return self._t5("translation_en_to_fr")

    def image_to_text(self):
        self._needs("image-to-text")
        decoder = {**SMALL, "model_type": "bert", "vocab_size": VOCAB, "is_decoder": True, "add_cross_attention": True}
        config = self.hf.VisionEncoderDecoderConfig(encoder={**SMALL, **PATCHES, "model_type": "vit"}, decoder=decoder)
        model = self._model("VisionEncoderDecoderModel", config)
        for name, value in {"decoder_start_token_id": 1, "pad_token_id": 0, "eos_token_id": None}.items():
            setattr(model.generation_config, name, value)
            setattr(model.config, name, value)
        processor = self._image_processor("ViTImageProcessor", size={"height": 32, "width": 32})
        parts = {"tokenizer": self.words, "image_processor": processor, "max_new_tokens": 4}
        return self.hf.pipeline("image-to-text", model, **parts)

    def image_text_to_text(self):
        self._needs("image-text-to-text")
        self.words.add_special_tokens({"additional_special_tokens": ["<image>"]})
        picture_id = self.words.convert_tokens_to_ids("<image>")
        text = {**SMALL, "model_type": "llama", "vocab_size": VOCAB + 2, "pad_token_id": 0, "eos_token_id": 2}
        config = self.hf.LlavaConfig(
            text_config={**text, "bos_token_id": 1},
            vision_config={**SMALL, **PATCHES, "model_type": "clip_vision_model", "projection_dim": 8},
            image_token_index=picture_id,
            vision_feature_layer=-1,
        )
        images = self._image_processor(
            "CLIPImageProcessor", size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}
        )
        template = "{% for m in messages %}{% for c in m['content'] %}{{ c['text'] if c['type'] == 'text' else '<image>' }} {% endfor %}{% endfor %}"
        processor = self.hf.LlavaProcessor(
            images, self.words, patch_size=16, vision_feature_select_strategy="default", chat_template=template
        )
        processor.num_additional_image_tokens = 1
        model = "LlavaForConditionalGeneration"
        return self._pipe("image-text-to-text", model, config, processor=processor, max_new_tokens=4)

    def _wav2vec2(self, **options):
        return self.hf.Wav2Vec2Config(
            **SMALL,
            conv_dim=(8, 8),
            conv_stride=(20, 16),
            conv_kernel=(20, 16),
            num_conv_pos_embeddings=4,
            num_conv_pos_embedding_groups=2,
            **options,
        )

    def audio_classification(self):
        config = self._wav2vec2(num_labels=3, classifier_proj_size=8)
        extractor = self.hf.Wav2Vec2FeatureExtractor()
        name = "Wav2Vec2ForSequenceClassification"
        return self._pipe("audio-classification", name, config, feature_extractor=extractor)

    def automatic_speech_recognition(self, **options):
        """Return connectionist temporal classification: a forward, no generate."""
        letters = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "|": 4, "A": 5, "B": 6, "C": 7}
        path = self.folder / "letters.json"
        path.write_text(json.dumps(letters))
        parts = {
            "tokenizer": self.hf.Wav2Vec2CTCTokenizer(str(path)),
            "feature_extractor": self.hf.Wav2Vec2FeatureExtractor(return_attention_mask=True),
        }
        config = self._wav2vec2(vocab_size=len(letters))
        return self._pipe("automatic-speech-recognition", "Wav2Vec2ForCTC", config, **parts, **options)

    def whisper(self, **options):
        """Return speech recognition that generates; its window is two seconds."""
        words, ids = self._whisper_tokenizer()
        end = ids["<|endoftext|>"]
        config = self.hf.WhisperConfig(
            vocab_size=len(ids),
            d_model=16,
            encoder_layers=1,
            decoder_layers=1,
            encoder_attention_heads=2,
            decoder_attention_heads=2,
            encoder_ffn_dim=32,
            decoder_ffn_dim=32,
            num_mel_bins=16,
            max_source_positions=100,
            max_target_positions=64,
            pad_token_id=end,
            bos_token_id=end,
            eos_token_id=end,
            decoder_start_token_id=ids["<|startoftranscript|>"],
        )
        model = self._model("WhisperForConditionalGeneration", config)
        settings = {
            "no_timestamps_token_id": ids["<|notimestamps|>"],
            "prev_sot_token_id": ids["<|startofprev|>"],
            "lang_to_id": {"<|en|>": ids["<|en|>"]},
            "task_to_id": {"transcribe": ids["<|transcribe|>"], "translate": ids["<|translate|>"]},
            "is_multilingual": True,
            "max_initial_timestamp_index": 50,
            "alignment_heads": [[0, 0]],
            "return_timestamps": False,
            # As in the published models, the marks come from the prompt only.
            "suppress_tokens": [n for name, n in ids.items() if name[:2] == "<|" and name[2].isalpha() and n != end],
        }
        for name, value in settings.items():
            setattr(model.generation_config, name, value)
        parts = {"tokenizer": words, "feature_extractor": self.hf.WhisperFeatureExtractor(16, chunk_length=2)}
        given = {"max_new_tokens": 8, "generate_kwargs": {"num_beams": 1}, "ignore_warning": True, **options}
        return self.hf.pipeline("automatic-speech-recognition", model, **parts, **given)

    def _whisper_tokenizer(self):
        alphabet = sorted(importlib.import_module("tokenizers").pre_tokenizers.ByteLevel.alphabet())
        marks = "endoftext startoftranscript en translate transcribe startoflm startofprev nospeech notimestamps"
        specials = [f"<|{mark}|>" for mark in marks.split()]
        stamps = [f"<|{n * 0.02:.2f}|>" for n in range(101)]
        made = self._bytes({name: n for n, name in enumerate([*alphabet, specials[0]])})
        made.add_special_tokens({"additional_special_tokens": specials[1:], "pad_token": specials[0]})
        made.add_tokens(stamps)
        names = [*alphabet, *specials, *stamps]
        return made, dict(zip(names, made.convert_tokens_to_ids(names), strict=True))

    def _bytes(self, vocabulary):
        """Return Whisper's tokenizer without merges; before version 5 it is read from files."""
        if int(self.hf.__version__.split(".")[0]) > 4:
            return self.hf.WhisperTokenizer(vocabulary, merges=[])
        paths = [self.folder / name for name in ("vocabulary.json", "merges.txt")]
        for path, text in zip(paths, (json.dumps(vocabulary), "#version: 0.2\n"), strict=True):
            path.write_text(text)
        return self.hf.WhisperTokenizer(*map(str, paths))

    def text_to_audio(self):
        config = self.hf.VitsConfig(
            vocab_size=VOCAB,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            ffn_dim=16,
            flow_size=16,
            spectrogram_bins=9,
            prior_encoder_num_flows=1,
            prior_encoder_num_wavenet_layers=1,
            posterior_encoder_num_wavenet_layers=1,
            duration_predictor_num_flows=1,
            duration_predictor_flow_bins=4,
            duration_predictor_filter_channels=16,
            depth_separable_num_layers=1,
            wavenet_kernel_size=3,
            upsample_initial_channel=16,
            upsample_rates=[4, 4],
            upsample_kernel_sizes=[8, 8],
            resblock_kernel_sizes=[3],
            resblock_dilation_sizes=[[1]],
            use_stochastic_duration_prediction=False,
        )
        return self._pipe("text-to-audio", "VitsModel", config, tokenizer=self.words)

    def music(self):
        """Return audio that is generated, token by token and codebook by codebook."""
        text = {**T5, "model_type": "t5", "vocab_size": VOCAB, "decoder_start_token_id": 0, "pad_token_id": 0}
        codec = {"model_type": "encodec", "num_filters": 4, "hidden_size": 16, "codebook_size": 32, "codebook_dim": 16}
        rates = {"upsampling_ratios": [4, 2], "num_lstm_layers": 1, "sampling_rate": 800, "target_bandwidths": [2.0]}
        decoder = {
            "model_type": "musicgen_decoder",
            "vocab_size": 32,
            "num_codebooks": 2,
            "ffn_dim": 32,
            "pad_token_id": 32,
        }
        config = self.hf.MusicgenConfig(
            text_encoder=text, audio_encoder={**codec, **rates}, decoder={**SMALL, **decoder, "bos_token_id": 32}
        )
        model = self._model("MusicgenForConditionalGeneration", config)
        for name in ("decoder_start_token_id", "pad_token_id", "bos_token_id"):
            setattr(model.generation_config, name, 32)
        return self.hf.pipeline("text-to-audio", model, tokenizer=self.words)
