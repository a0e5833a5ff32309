"""Near misses: what people mistype is found, and what they name for themselves is left alone."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ideogram_pipeline.settings import Settings
from ideogram_pipeline.spelling import nearest
from ideogram_pipeline.tables.columns import columns_of
from ideogram_pipeline.tables.rows import PromptRow, ReferenceRow, Review

PROMPTS, REFERENCES, REVIEWS = map(columns_of, (PromptRow, ReferenceRow, Review))
VARIABLES = [f"IDEOGRAM_{name.upper()}" for name in Settings.model_fields if not name.startswith("fal_")]


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("refrence_id", "reference_id"),
        ("referense_id", "reference_id"),
        ("reference_di", "reference_id"),
        ("refernce_ids", "reference_id"),
        ("reference_ids", "reference_id"),
        ("ref_id", "reference_id"),
        ("Reference ID", "reference_id"),
        ("REFERENCE_ID", "reference_id"),
        ("reference-id", "reference_id"),
        ("reference.id", "reference_id"),
        ("reference__id", "reference_id"),
        ("referenceId", "reference_id"),
        ("referenceid", "reference_id"),
        ("refrenceid", "reference_id"),
        ("id_reference", "reference_id"),
        ("\ufeffreference_id", "reference_id"),
        ("reference_id\u200b", "reference_id"),
        ("\uff53eed", "seed"),
        ("promt", "prompt"),
        ("Prompt", "prompt"),
        ("prompts", "prompt"),
        ("promptid", "prompt_id"),
        ("bacth", "batch"),
        ("Batch", "batch"),
        ("batches", "batch"),
        ("sede", "seed"),
        ("stile", "style"),
        ("seeds", "seed"),
        ("stlye", "style"),
        ("sytle_preset", "style_preset"),
        ("style_code", "style_codes"),
        ("style_refrence_id", "style_reference_ids"),
        ("image_sise", "image_size"),
        ("image_sizes", "image_size"),
        ("size_image", "image_size"),
        ("imagesize", "image_size"),
        ("num_image", "num_images"),
        ("number_images", None),
        ("colour_palette", "color_palette"),
        ("color_pallete", "color_palette"),
        ("color_pallette", "color_palette"),
        ("rendring_speed", "rendering_speed"),
        ("render_speed", "rendering_speed"),
        ("neg_prompt", "negative_prompt"),
        ("negativ_prompt", "negative_prompt"),
        ("expand_promt", "expand_prompt"),
        ("strenght", "strength"),
        ("end_point", "endpoint"),
        ("endpoints", "endpoint"),
        ("sync mode", "sync_mode"),
    ],
)
def test_a_mistyped_column_of_prompts_is_near(written, meant):
    assert nearest(written, PROMPTS) == meant


NATURAL = """
notes note campaign prompt_version reference_note client author language tags title sku lang owner
status comment prompt_2 prompt2 prompt_en prompt_de prompt_text prompt_hash original_prompt
expanded_prompt prompt_author batch_note batch_name batch_id batch_date image_name image_alt
image_link image_title image_count image_width style_note style_name style_guide style_id styled
speed size color colors model cost price date created_at updated_at review reviewer seed_source
seed_note match patch watch need feed seen path url uri source source_url category product
product_id project project_id priority scene shot character character_name name id version weight
width height ratio format quality deadline department market channel platform layout theme mood
mask_note masked reference_name reference_url negative negative_note strengths_note rendering preset
palette_note sync synced_at expand extra row_number index key label group set split text description
caption keywords seed_2 style_preset_2 id_2 column_1 Unnamed__0 __index_level_0__ prompt_length
num_words num_chars licence preference preview previous point entry_point stamp image_3 straight
team promo prompter prompted bath
"""


def test_columns_that_people_add_for_themselves_are_not_near():
    assert {name: near for name in NATURAL.split() if (near := nearest(name, PROMPTS))} == {}


@pytest.mark.parametrize(
    ("written", "known", "meant"),
    [
        ("licence", REFERENCES, "license"),
        ("note", REFERENCES, "notes"),
        ("Role", REFERENCES, "role"),
        ("notes", REVIEWS, "note"),
        ("reviewed at", REVIEWS, "reviewed_at"),
        ("IDEOGRAM_BUGDET_USD", VARIABLES, "IDEOGRAM_BUDGET_USD"),
        ("IDEOGRAM_BUDGET", VARIABLES, None),
        ("IDEOGRAM_USD_BUDGET", VARIABLES, "IDEOGRAM_BUDGET_USD"),
        ("IDEOGRAM_BUDGET_PER_DAY_USD", VARIABLES, "IDEOGRAM_BUDGET_USD_PER_DAY"),
        ("IDEOGRAM_BACKENDS", VARIABLES, "IDEOGRAM_BACKEND"),
        ("IDEOGRAM_BAKEND", VARIABLES, "IDEOGRAM_BACKEND"),
        ("IDEOGARM_BACKEND", VARIABLES, "IDEOGRAM_BACKEND"),
        ("IDEOGRAM_PROMPT", VARIABLES, "IDEOGRAM_PROMPTS"),
        ("IDEOGRAM_REFRENCES", VARIABLES, "IDEOGRAM_REFERENCES"),
        ("IDEOGRAM_MAX_INFLIGHT", VARIABLES, "IDEOGRAM_MAX_IN_FLIGHT"),
        ("IDEOGRAM_DEFAULT", VARIABLES, "IDEOGRAM_DEFAULTS"),
        ("IDEOGRAM_C2PA_CERT", VARIABLES, "IDEOGRAM_C2PA_CERTIFICATE"),
        ("IDEOGRAM_API_KEY", VARIABLES, None),
        ("IDEOGRAM_TEAM", VARIABLES, None),
        ("IDEOGRAM_STORE_PATH", VARIABLES, None),
        ("IDEOGRAM_VERSION", VARIABLES, None),
    ],
)
def test_other_tables_and_variables_have_near_misses_too(written, known, meant):
    assert nearest(written, known) == meant


@pytest.mark.parametrize(
    "name", ["licensee", "licensed_by", "licensor", "rule", "url", "source_url", "photographer", "reviewer"]
)
def test_a_column_that_people_add_to_references_is_not_near(name):
    assert nearest(name, REFERENCES) is None


@pytest.mark.parametrize("name", ["reviewed_by", "reviewer", "preview", "vote", "node", "batch", "prompt_id"])
def test_a_column_that_people_add_to_reviews_is_not_near(name):
    assert nearest(name, REVIEWS) is None


@pytest.mark.parametrize("known", [PROMPTS, REFERENCES, REVIEWS, VARIABLES])
def test_no_known_name_is_near_to_another(known):
    for name in known:
        assert nearest(name, known) is None
        assert nearest(name, [one for one in known if one != name]) is None, name


@given(st.text(max_size=30))
def test_any_text_is_near_to_a_known_name_or_to_none(text):
    assert nearest(text, PROMPTS) in (None, *PROMPTS)


@given(st.sampled_from(PROMPTS), st.data())
def test_two_letters_swapped_in_a_long_word_are_found(name, data):
    inside = range(len(name.removesuffix("s")) - 1)
    places = [i for i in inside if name[i] != name[i + 1] and "_" not in name[i : i + 2]]
    place = data.draw(st.sampled_from(places))
    swapped = name[:place] + name[place + 1] + name[place] + name[place + 2 :]
    assert swapped in PROMPTS or nearest(swapped, PROMPTS) is not None
