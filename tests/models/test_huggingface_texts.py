"""Models that compare pictures with texts: embeddings and similarities equal those of transformers."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import save_file

import torchpeek as tp
from networks.huggingface import PROCESSORS, two_towers, vit, write_clip_tokenizer, write_processor
from torchpeek.engine.targets import Similarity
from torchpeek.errors import InputError, ModelError, Notice

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.usefixtures("no_network", "quiet_transformers")


class TestTexts:
    def test_clip_compares_as_the_whole_does(self, saved, photograph) -> None:
        whole = two_towers("CLIP")
        folder = saved(whole)
        write_clip_tokenizer(folder)
        write_processor(folder, **PROCESSORS["squash"] | {"size": {"height": 32, "width": 32}})
        loaded = tp.load_model(f"hf:{folder}")
        assert type(loaded.module).__name__ == "CLIPVisionModelWithProjection"
        texts = ["a cat", "dog", "a b c d"]
        embeddings = loaded.embed(texts)
        assert embeddings.shape == (3, 6)
        assert not embeddings.requires_grad

        picture = loaded.read(photograph)
        tokens = transformers.AutoTokenizer.from_pretrained(folder)(texts, padding=True, return_tensors="pt")
        with torch.no_grad():
            output = loaded.module(picture.tensor)
            expected = whole(pixel_values=picture.tensor, **tokens).logits_per_image  # cosines times a scale
        question = Similarity(to=embeddings, part="image_embeds").bind(output)
        cosines = question(output, torch.tensor([0]))
        torch.testing.assert_close(cosines * whole.logit_scale.exp(), expected)

    def test_a_text_is_embedded_as_it_is_alone(self, saved) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        together = loaded.embed(["a", "a b c d e"])
        torch.testing.assert_close(together[:1], loaded.embed("a"))
        torch.testing.assert_close(together[1:], loaded.embed("a b c d e"))

    def test_siglip_compares_as_the_whole_does(self, saved) -> None:
        tokenizers = pytest.importorskip("tokenizers")
        whole = two_towers("Siglip")
        folder = saved(whole)
        words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<pad>": 0, "</s>": 1, "a": 2, "cat": 3}, "</s>"))
        words.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
        transformers.PreTrainedTokenizerFast(
            tokenizer_object=words, pad_token="<pad>", eos_token="</s>"
        ).save_pretrained(folder)
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        assert type(loaded.module).__name__ == "SiglipVisionModel"
        pixels = torch.rand(2, 3, 32, 32)
        ids = torch.tensor([[2, 3, *[0] * 10], [3, *[0] * 11]])
        with torch.no_grad():
            output = loaded.module(pixels)
            expected = whole(input_ids=ids, pixel_values=pixels).logits_per_image
        question = Similarity(to=loaded.embed(["a cat", "cat"]), part="pooler_output").bind(output)
        scores = question(output, torch.tensor([0, 1])) * whole.logit_scale.exp() + whole.logit_bias
        torch.testing.assert_close(scores, expected)

    def test_random_halves_need_no_weights(self, saved) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        (folder / "model.safetensors").unlink()
        with pytest.warns(Notice):
            assert tp.load_model(f"hf:{folder}", "random").embed("a").shape == (1, 6)

    @pytest.mark.parametrize("name", ["CLIP", "Siglip"])
    def test_no_tokenizer(self, name: str, saved) -> None:
        """Of CLIP transformers would make one that knows no word."""
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{saved(two_towers(name))}")
        with pytest.raises(ModelError, match=r"has no tokenizer that can be used.*tokenizer.save_pretrained"):
            loaded.embed("a cat")

    def test_what_cannot_be_embedded(self, saved) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        with pytest.raises(InputError, match="has 14 tokens; allowed: 12"):
            loaded.embed(["a", "abcdefghijkl"])
        for wrong in ([], "", ["a", 3], [" "]):
            with pytest.raises(InputError, match=r"allowed: a text,? or a list"):
                loaded.embed(wrong)  # type: ignore[arg-type]

    def test_other_models_have_no_text_half(self, saved, tmp_path) -> None:
        folder = saved(vit())
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}")
        with pytest.raises(ModelError, match="has no text half; CLIP and SigLIP"):
            loaded.embed("a cat")

    def test_nor_has_one_with_other_weights(self, saved, tmp_path) -> None:
        folder = saved(two_towers("CLIP"))
        write_clip_tokenizer(folder)
        with pytest.warns(Notice):
            state = tp.load_model(f"hf:{folder}").module.state_dict()
        save_file(state, tmp_path / "vision.safetensors")
        with pytest.warns(Notice):
            loaded = tp.load_model(f"hf:{folder}", tmp_path / "vision.safetensors")
        with pytest.raises(ModelError, match="with their own weights"):
            loaded.embed("a")
