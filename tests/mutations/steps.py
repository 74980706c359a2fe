"""Guards of what a step is made of: blocks, budgets, draws; and of what is said about how long to wait."""

from tests.mutations.mutation import Mutation, taking_from

scheduler = taking_from("worker/engine/scheduler.py", "tests/engine/test_scheduler.py")
blocks = taking_from("worker/engine/kv_cache.py", "tests/engine/test_scheduler.py")
memory = taking_from("worker/engine/memory.py", "tests/engine/test_memory.py")
loader = taking_from("worker/engine/loader.py", "tests/engine/test_loader.py")
exact = taking_from("worker/engine/loader.py", "tests/engine/test_linear.py")
linear = taking_from("worker/engine/linear.py", "tests/engine/test_linear.py")
trace = taking_from("worker/engine/trace.py", "tests/engine/test_trace.py")
fusing = taking_from("worker/engine/fuse.py", "tests/engine/test_fuse.py")
fused = taking_from("worker/engine/trace.py", "tests/engine/test_fuse.py")
length = taking_from("worker/engine/positions.py", "tests/engine/test_loader.py")
new_runner = taking_from("worker/engine/model_runner.py", "tests/engine/test_loader.py")
own_mask = taking_from("worker/engine/attention.py", "tests/engine/test_loader.py")
runner = taking_from("worker/engine/model_runner.py", "tests/engine/test_trace.py")
without_mask = taking_from("worker/engine/model_runner.py", "tests/engine/test_cuda_graphs.py")
graphs = taking_from("worker/engine/cuda_graphs.py", "tests/engine/test_cuda_graphs.py")
closeness = taking_from("worker/engine/closeness.py", "tests/engine/test_cuda_graphs.py")
triton = taking_from("worker/engine/triton_kernels.py", "tests/engine/under_triton_interpreter.py")
compiled = taking_from("worker/engine/triton_kernels.py", "tests/engine/test_triton_kernels.py")
gave_way = taking_from("worker/engine/scheduler.py", "tests/engine/test_parity.py")
guesses = taking_from("worker/engine/scheduler.py", "tests/engine/test_speculation.py")
guessing = taking_from("worker/engine/engine.py", "tests/engine/test_speculation.py")
detokenizer = taking_from("worker/engine/detokenizer.py", "tests/engine/test_detokenizer.py")
engine = taking_from("worker/engine/engine.py", "tests/engine/test_prefix.py")
delivery = taking_from("worker/engine/delivery.py", "tests/engine/test_engine.py")
sampler = taking_from("worker/engine/sampler.py", "tests/engine/test_sampler.py")
service_rate = taking_from("worker/engine/service_rate.py", "tests/engine/test_service_rate.py")
native = taking_from("worker/engine/native/__init__.py", "tests/engine/test_native.py")
settings = taking_from("worker/settings.py", "tests/test_settings.py")
log = taking_from("worker/observe/log.py", "tests/observe/test_log.py")

_SCHEDULING = [
    scheduler(
        "blocks are given back",
        "        self.pool.release(blocks)\n",
        "",
        "test_leaving_in_every_state_gives_the_blocks_back",
    ),
    scheduler(
        "a sequence leaves once",
        "        sequence.state = SequenceState.FINISHED\n",
        "",
        "test_the_laws_hold_in_any_order_of_events",
    ),
    scheduler(
        "prompts advance even when decodes fill the budget",
        "max(self._step_tokens - sum(len(row.token_ids) for row in rows), MIN_PREFILL_TOKENS)",
        "self._step_tokens - sum(len(row.token_ids) for row in rows)",
        "test_prompts_advance_even_when_decodes_fill_the_budget",
    ),
    scheduler(
        "the budget of a step holds",
        "min(budget, sequence.num_tokens - sequence.num_computed)",
        "sequence.num_tokens - sequence.num_computed",
        "test_a_long_prompt_is_cut_and_does_not_stop_the_decodes",
    ),
    scheduler(
        "first come, first served",
        "self._start(self.waiting[0]):\n                sequence = self.waiting.popleft()",
        "self._start(self.waiting[-1]):\n                sequence = self.waiting.pop()",
        "tests/engine/test_engine.py::test_more_requests_than_slots_are_all_served_in_order",
    ),
    scheduler(
        "prompts that have begun go first",
        "            if prefilling:\n                sequence = prefilling.pop(0)\n",
        "            if prefilling and not self.waiting:\n                sequence = prefilling.pop(0)\n",
        "test_nothing_is_shared_before_it_has_proved_to_be_numbers",
    ),
    scheduler(
        "no more run at once than may",
        " and len(self.running) < self._max_running and self._start(",
        " and self._start(",
        "test_who_waits_gets_the_slot_of_who_left_in_the_next_step",
    ),
    scheduler(
        "nobody starts without room for the whole prompt",
        "        if num_missing + len(self.running) > self.pool.num_free:\n",
        "        if False:\n",
        "test_who_does_not_fit_is_not_overtaken",
    ),
    scheduler(
        "who starts leaves room for those who run",
        "        if num_missing + len(self.running) > self.pool.num_free:\n",
        "        if num_missing > self.pool.num_free:\n",
        "test_who_starts_leaves_room_for_those_who_run",
    ),
    scheduler(
        "who cannot start gives back what it has found",
        "            self.pool.release(matched)\n            return False\n",
        "            return False\n",
        "test_who_cannot_start_owns_nothing",
    ),
    scheduler(
        "the youngest gives way",
        "            youngest = self.running[-1]\n",
        "            youngest = self.running[0]\n",
        "test_the_laws_hold_in_any_order_of_events",
    ),
    scheduler(
        "who gave way is the next to start",
        "        self.waiting.appendleft(sequence)\n",
        "        self.waiting.append(sequence)\n",
        "test_when_the_cache_is_full_the_youngest_gives_way_and_loses_no_token",
    ),
    scheduler(
        "who gave way computes no more in this step",
        """\
            if sequence.state is not SequenceState.RUNNING:
                continue  # it has just given its blocks up to an older one
""",
        "",
        "test_when_the_cache_is_full_the_youngest_gives_way_and_loses_no_token",
    ),
    scheduler(
        "the last token of a prompt is computed though all of it is known",
        "sequence.tokens(0, sequence.num_tokens - 1)",
        "sequence.tokens(0, sequence.num_tokens)",
        "test_the_last_token_of_a_prompt_is_computed_though_all_of_it_is_known",
    ),
    scheduler(
        "who gave way publishes from its beginning again",
        "        sequence.content = ROOT\n",
        "",
        "test_who_gave_way_publishes_from_its_beginning_again",
    ),
    engine(
        "nothing is shared that has not proved to be numbers",
        """\
        if self._is_sharing:
            self._scheduler.publish(sequence)
""",
        "",
        "test_a_prompt_that_begins_like_another_is_not_computed_again",
    ),
    memory(
        "files that the kernel remembers do not take the cache's room",
        " - int(used) + files))\n",
        " - int(used)))\n",
        "test_files_that_the_kernel_remembers_are_not_in_the_way",
    ),
    loader(
        "a context that the whole cache cannot hold is none",
        "    max_context = min(max_context, num_blocks * BLOCK_TOKENS)\n",
        "",
        "test_a_context_that_the_whole_cache_cannot_hold_is_none",
    ),
    new_runner(
        "whatever a model raises row by row is said beside the reason why it is not packed",
        "    except Exception as error:  # whatever a model's code may raise that keeps another cache\n",
        "    except (AttributeError, TypeError) as error:\n",
        "test_a_model_that_computes_in_neither_way_is_refused_with_both_reasons[error0]",
    ),
    loader(
        "neither of two long reasons hides the other",
        "        if isinstance(error, ModelLoadError):  # which says all, and is not cut\n",
        "        if False:\n",
        "test_neither_of_two_long_reasons_hides_the_other",
    ),
    new_runner(
        "no memory for a row's own cache does not make a model unsupported",
        """\
            raise
        problem =""",
        """\
            pass
        problem =""",
        "test_a_model_without_memory_for_its_own_cache_is_not_called_unsupported",
    ),
    new_runner(
        "the cache of a model that is served row by row is no larger than may be",
        "    num_blocks(max(1, num_bytes // (len(prompts[0]) - len(prompts[1]))))\n",
        "",
        "test_the_cache_of_a_model_that_is_served_row_by_row_is_as_large_as_it_may_be",
    ),
    loader(
        "a cache that is measured again is not bound by the first time",
        "        num_blocks = min(max_blocks, cache_bytes(",
        "        num_blocks = min(num_blocks, cache_bytes(",
        "test_a_cache_that_is_measured_again_is_not_bound_by_the_first_time",
    ),
    gave_way(
        "the cache of who gave way is gone though it is the model's own",
        "        self.forget(sequence.blocks)\n",
        "",
        "test_who_gives_way_row_by_row_has_the_same_tokens_and_its_cache_is_gone",
    ),
    length(
        "a model names its length in one of several ways",
        """\
_LENGTHS = ("max_position_embeddings", "max_seq_len", "max_target_positions", "n_positions", "n_ctx")
""",
        """\
_LENGTHS = ("max_position_embeddings",)
""",
        "test_the_context_of_a_model_that_is_served_row_by_row_is_its_own_at_most",
    ),
    length(
        "the length of a model of several parts is that of its text",
        "    text = config.get_text_config(decoder=True)\n",
        "    text = config\n",
        "test_the_number_of_positions_has_many_names[gemma3-77]",
    ),
    blocks(
        "a block has as many owners as took it",
        "            self._num_owners[block] += 1\n",
        "            pass\n",
        "test_what_is_known_is_shared_while_its_first_owner_still_runs",
    ),
    blocks(
        "a block that nobody owns cannot be given back",
        "            if not 1 <= block <= self.num_blocks or self._num_owners[block] == 0:\n",
        "            if False:\n",
        "test_a_block_that_nobody_owns_cannot_be_given_back",
    ),
    blocks(
        "a block that is owned again is not given to another",
        "            self._idle.pop(block, None)\n",
        "            pass\n",
        "test_the_laws_hold_in_any_order_of_events",
    ),
    blocks(
        "a block that is taken loses its content",
        "                self._forget(block)\n",
        "                pass\n",
        "test_the_laws_hold_in_any_order_of_events",
    ),
    blocks(
        "what was used last is forgotten last",
        "popitem(last=False)",
        "popitem(last=True)",
        "test_who_was_used_last_is_forgotten_last",
    ),
    blocks(
        "the beginning of a text is remembered longer than its end",
        "for block in reversed(blocks):",
        "for block in blocks:",
        "test_the_beginning_of_a_text_is_remembered_longer_than_its_end",
    ),
]

_SAMPLING = [
    sampler(
        "a row is weighed alike alone and in company",
        "    probs = scaled.softmax(dim=-1)\n",
        "    probs = scaled.exp() / scaled.exp().sum(dim=-1, keepdim=True)\n",
        "test_a_row_is_weighed_alike_alone_and_in_company[chosen1]",
    ),
    sampler(
        "a row of which the likeliest tokens may not be all is drawn from all",
        "        if not is_certain:\n",
        "        if False:\n",
        "test_to_look_at_the_likeliest_first_changes_no_draw[chosen8-0.01]",
    ),
    sampler(
        "what may not be drawn yet is not drawn",
        "    if row.forbidden_ids:\n",
        "    if False:\n",
        "test_what_is_forbidden_is_not_drawn",
    ),
    delivery(
        "a stop string before the shortest answer is text",
        "    if num_tokens > sequence.params.min_tokens:  # a stop string before it is only text\n",
        "    if True:\n",
        "test_before_so_many_tokens_neither_an_end_nor_a_stop_ends",
    ),
    sampler(
        "a share of more tokens than are looked at is not taken from those",
        "if top_k <= NUM_LIKELIEST or top_k >= vocab_size:",
        "if True:",
        "test_to_look_at_the_likeliest_first_changes_no_draw[chosen4-1.0]",
    ),
    sampler(
        "a device that is lost while drawing is no fault of a row",
        """\
    if isinstance(error, torch.AcceleratorError):
        raise error  # the device is lost for this process: that is no fault of a row
""",
        "",
        "test_a_lost_device_is_no_fault_of_a_row",
    ),
    sampler(
        "nothing is drawn from what is no number",
        "        logits = torch.where(is_usable[:, None], logits, 0.0)\n",
        "        pass\n",
        "test_nothing_is_drawn_from_what_is_no_number",
    ),
    sampler(
        "a row without usable logits fails alone",
        "        if not numbers[i]:\n",
        "        if False:\n",
        "test_one_bad_number_fails_its_row_alone",
    ),
    sampler(
        "a row that cannot be drawn does not cost the others theirs",
        "                if len(part) > 1:  # whose fault is it? Draw each alone\n",
        "                if False:\n",
        "test_a_draw_that_fails_fails_its_own_row_and_the_others_keep_their_random_numbers",
    ),
    sampler(
        "a row that is drawn again takes no second random number",
        "[points[i] for i in part]",
        "[rows[i].rng.random() for i in part]",
        "test_a_draw_that_fails_fails_its_own_row_and_the_others_keep_their_random_numbers",
    ),
    sampler(
        "a penalty that fails fails its own row",
        "            except Exception as error:  # this row's own fault\n",
        "            except ZeroDivisionError as error:\n",
        "test_a_penalty_that_fails_fails_its_own_row",
    ),
    sampler(
        "a temperature near zero does not overflow",
        "    if params.temperature < 1e-5:\n",
        "    if params.temperature == 0:\n",
        "test_a_temperature_near_zero_is_greedy",
    ),
]

_GUESSES = [
    guesses(
        "a guess counts as computed only when it has proved right",
        "        row.sequence.num_computed = row.end - row.num_guesses\n",
        "        row.sequence.num_computed = row.end\n",
        "test_what_was_computed_behind_a_wrong_guess_is_not_shared",
    ),
    guesses(
        "a guess that was right is not computed again",
        "        sequence.num_computed += 1\n",
        "",
        "test_what_was_guessed_right_is_not_computed_again",
    ),
    guesses(
        "a guess behind which nothing could be drawn is computed again",
        "        sequence.num_computed -= 1\n",
        "",
        "test_a_draw_behind_a_guess_that_fails_is_made_in_the_next_step",
    ),
    guesses(
        "no guess takes a block that another would have to give up",
        "            if guesses and num_missing <= self.pool.num_free:\n",
        "            if guesses:\n",
        "test_no_guess_takes_a_block_that_another_needs",
    ),
    guesses(
        "nothing is guessed behind the last token that may be drawn",
        "guess(sequence, min(limit, num_left))",
        "guess(sequence, limit)",
        "test_nothing_is_guessed_behind_the_last_token_that_may_be_drawn",
    ),
    guesses(
        "the more decode the fewer are guessed",
        "        limit = min(self.max_guesses, CHEAP_ROWS // max(1, len(decodes)) - 1)\n",
        "        limit = self.max_guesses\n",
        "test_the_more_decode_the_fewer_are_guessed",
    ),
    guessing(
        "what is drawn behind a wrong guess is not delivered",
        "if draw.guesses[:1] == [tokens.token_ids[i]] and sequence.state is SequenceState.RUNNING:",
        "if draw.guesses and sequence.state is SequenceState.RUNNING:",
        "test_no_token_is_another_whatever_is_guessed[7-llama]",
    ),
    guessing(
        "a draw behind a guess that fails does not end the engine",
        """\
            self._fault(error)
            for draw in draws:
                self._scheduler.guessed_in_vain(draw.sequence)
            return None
""",
        "            raise\n",
        "test_a_draw_behind_a_guess_that_fails_is_made_in_the_next_step",
    ),
    detokenizer(
        "a window does not grow with its stream",
        "        self._window = self._window[self._num_settled :]\n",
        "",
        "test_a_window_does_not_grow_with_the_stream",
    ),
]

_ARITHMETIC = [
    trace(
        "a recording is not used where the tracer saw a decision",
        "            if issubclass(one.category, jit.TracerWarning):\n",
        "            if False:\n",
        "test_what_a_recording_would_not_see_is_not_traced",
    ),
    trace(
        "a recording is the model's own to the bit",
        "            if not is_equal:\n",
        "            if False:\n",
        "test_what_a_recording_would_not_see_is_not_traced",
    ),
    trace(
        "a recording that fails is none",
        "            except Exception as error:  # of torch's interpreter, for a size that was recorded as a number\n",
        "            except ZeroDivisionError as error:\n",
        "test_what_a_recording_would_not_see_is_not_traced",
    ),
    length(
        "no sequence is so long that its neighbours get other positions",
        "    if original < number:\n",
        "    if False:\n",
        "test_no_sequence_is_so_long_that_others_get_other_positions",
    ),
    new_runner(
        "a window that only a mask knows of is not left out",
        "        unknown = sorted(wanted - self.attention.windows)\n",
        "        unknown = sorted(set())\n",
        "test_a_window_that_only_a_mask_knows_of_is_served_row_by_row",
    ),
    own_mask(
        "a mask of the model's own is not left out",
        "        if attention_mask is not None:  # we make none\n",
        "        if False:\n",
        "test_a_model_that_makes_its_own_mask_is_refused",
    ),
    fused(
        "a fused recording is the model's own to the bit",
        "            self._recorded = fuse(recorded)\n            self._compare(step, max_context)\n",
        "            self._recorded = fuse(recorded)\n",
        "test_a_recording_that_is_joined_wrongly_is_not_used",
    ),
    fused(
        "what cannot be fused is played as it was recorded",
        "        except Exception as error:  # of torch's compiler, on an operator that it does not know as we do\n",
        "        except CannotTrace as error:\n",
        "test_an_operator_that_cannot_be_joined_leaves_the_recording_as_it_was",
    ),
    fusing(
        "a layer is joined only when its weights are there",
        'if node.kind() == "endstop::linear" and _has_fixed_weights(node):',
        'if node.kind() == "endstop::linear":',
        "test_a_layer_whose_weights_are_not_there_yet_is_not_joined",
    ),
    trace(
        "an error of the model's own is no recording",
        "            except Exception as error:  # of the model's own code\n",
        "            except ZeroDivisionError as error:\n",
        "test_a_position_that_the_model_does_not_have_is_no_fault_of_the_recording",
    ),
    loader(
        "the model has the last position that may be asked for",
        "        check_last_position(runner, max_context)\n",
        "",
        "test_a_model_that_has_fewer_positions_than_it_says_tells_how_many_would_do[513-off]",
    ),
    new_runner(
        "a device that is lost is not asked for other positions",
        "        if not isinstance(error, torch.AcceleratorError):",
        "        if True:",
        "test_a_device_that_is_lost_at_the_last_position_is_not_asked_for_others",
    ),
    trace(
        "a recording is compared at far positions too",
        "        far = max_context - 1\n",
        "        far = 100\n",
        "test_far_positions_are_compared_too",
    ),
    runner(
        "rows that are not sampled have no logits in a traced step",
        "            return sampled, logits if len(keep) == len(step.token_ids) else logits[keep]\n",
        "            return sampled, logits\n",
        "test_rows_that_are_not_sampled_have_no_logits",
    ),
    runner(
        "a step with a prompt is not played back",
        "if self._traced is not None and all(row.is_decode for row in rows):",
        "if self._traced is not None:",
        "test_a_traced_step_is_equal_to_the_bit[llama-dtype0]",
    ),
    linear(
        "only what is a linear layer and nothing more is replaced",
        "    return type(module) is nn.Linear and",
        "    return isinstance(module, nn.Linear) and",
        "test_only_what_is_a_plain_linear_layer_is_replaced",
    ),
    linear(
        "only what the kernels compute with is replaced",
        " and module.weight.dtype in _NATIVE_TYPES and",
        " and",
        "test_only_what_is_a_plain_linear_layer_is_replaced",
    ),
    linear(
        "a model may look at weights that are int8",
        "        return (self.numbers * self.scales[:, None]).to(self._dtype)\n",
        "        return self.numbers\n",
        "test_a_model_may_look_at_weights_that_are_int8",
    ),
    linear(
        "a model that multiplies in its own way is not exact",
        '                        raise NotExact(f"{name} is',
        '                        _ = (f"{name} is',
        "test_a_model_that_multiplies_in_its_own_way_is_not_exact",
    ),
    exact(
        "a server that is to be exact does not start without the kernels",
        '    if settings.deterministic and not (kernels.IS_NATIVE and device == "cpu"):\n',
        "    if False:\n",
        "test_a_model_that_cannot_be_exact_is_refused",
    ),
    exact(
        "a model that cannot be exact is refused with the reason",
        "    except NotExact as error:\n",
        "    except ZeroDivisionError as error:\n",
        "test_a_model_that_cannot_be_exact_is_refused",
    ),
    exact(
        "a model whose widths torch's functions cut is not exact",
        "        check_widths(model)\n",
        "        pass\n",
        "test_a_model_whose_layers_torchs_functions_cut_is_not_exact",
    ),
    linear(
        "a width is measured against the vectors of this CPU",
        '128 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 64',
        "64",
        "test_the_step_that_a_width_is_a_multiple_of_is_that_of_torchs_functions",
    ),
    linear(
        "the number of tokens that a model knows is not a width",
        "0 if module is model.get_output_embeddings() else module.out_features",
        "module.out_features",
        "test_the_number_of_tokens_that_a_model_knows_is_not_a_width",
    ),
    exact(
        "a model that is computed row by row is not exact",
        "    if fallback_reason and settings.deterministic:\n",
        "    if False:\n",
        "test_a_model_that_cannot_be_exact_is_refused",
    ),
    settings(
        "no more threads are asked for than a system gives",
        "        maximum=1024,  # a hundred thousand, which a system does not give, ended the process\n",
        "",
        "test_what_is_refused_names_variable_value_and_limit",
    ),
    exact(
        "an exact model has one thread of torch's",
        """\
    if is_exact:
        torch.set_num_threads(1)
""",
        "",
        "test_an_exact_model_has_one_thread_of_torchs_and_as_many_of_ours_as_before",
    ),
    exact(
        "an exact model has as many threads of ours as before",
        "kernels.set_threads(torch.get_num_threads() if is_exact else 0)",
        "kernels.set_threads(0)",
        "test_an_exact_model_has_one_thread_of_torchs_and_as_many_of_ours_as_before",
    ),
]

_GPU = [
    triton(
        "on a GPU nobody reads a place that is not its own",
        "        is_there = at < stop\n",
        "        is_there = at < (stop + BLOCK_TOKENS - 1) // BLOCK_TOKENS * BLOCK_TOKENS\n",
        "test_decodes_are_what_attention_is_by_definition[plain-dtype0-1e-05]",
    ),
    triton(
        "on a GPU a token that sees nothing of the first keys is still a number",
        '        base = tl.where(now_largest == float("-inf"), 0.0, now_largest)\n',
        "        base = now_largest\n",
        "test_a_token_that_sees_nothing_of_the_first_keys_sees_the_others",
    ),
    compiled(
        "no kernel is compiled again in the middle of serving",
        '    do_not_specialize_on_alignment=["tables", "lengths", "totals"],\n',
        "",
        "test_they_are_compiled_once_and_nothing_waits_for_the_gpu",
    ),
    compiled(
        "Triton's compiler is started without gevent",
        "\n_keep_subprocess()\n",
        "\n",
        "test_they_are_compiled_on_a_native_thread_under_gevent",
    ),
    without_mask(
        "no step waits for the GPU to find that there is no mask",
        "        model.set_attn_implementation(self._name)\n        self._keeps_logits",
        """\
        model.set_attn_implementation(self._name)
        AttentionMaskInterface.register(self._name, lambda *args, **kwargs: None)
        self._keeps_logits""",
        "test_no_step_of_a_model_waits_for_the_gpu[llama]",
    ),
    graphs(
        "a captured step writes nothing for rows of an earlier one",
        "            buffer[num_rows:size].fill_(padding)\n",
        "",
        "test_rows_of_an_earlier_step_are_not_computed_again",
    ),
    graphs(
        "a captured step reads nothing for rows of an earlier one",
        "        self._tables[num_rows:size, 0].fill_(PADDING_BLOCK)\n",
        "",
        "test_rows_of_an_earlier_step_are_not_computed_again",
    ),
    graphs(
        "padding is written to the scratch place",
        "        self._padding = (0, 0, attention.scratch_place, 1)\n",
        "        self._padding = (0, 0, 0, 1)\n",
        "test_the_padding_block_holds_zeros_for_ever_and_nobody_looks_at_the_scratch",
    ),
    graphs(
        "a captured step is the model's own",
        "            if distance > tolerance:\n",
        "            if False:\n",
        "test_what_is_captured_differently_is_not_used",
    ),
    closeness(
        "what is no number is not near",
        'distances.nan_to_num(nan=float("inf"), posinf=float("inf")).max()',
        "distances.max()",
        "test_what_is_captured_differently_is_not_used",
    ),
    graphs(
        "more rows than the largest graph are not cut off",
        "if size >= num_rows), None)\n",
        "if size >= num_rows), self.sizes[-1])\n",
        "test_more_rows_than_the_largest_graph_run_the_models_code",
    ),
    graphs(
        "a sequence longer than a graph's buffers is not cut off",
        " or num_blocks > self._tables.shape[1]:",
        ":",
        "test_a_sequence_longer_than_the_buffers_runs_the_models_code",
    ),
    graphs(
        "no graph is for more rows than there are blocks",
        "min(max_rows, attention.num_blocks)",
        "max_rows",
        "test_no_more_rows_are_captured_than_there_are_blocks",
    ),
    graphs(
        "want of memory for graphs is no fault of the model",
        "                if is_out_of_memory(error):\n                    raise\n",
        "",
        "test_want_of_memory_is_no_fault_of_the_model",
    ),
    graphs(
        "a device that is lost in a capture is noticed at once",
        "                self._in_python(*self._example([0])).sum().item()\n",
        "",
        "test_a_device_that_is_lost_in_a_capture_is_noticed_at_once",
    ),
    graphs(
        "what waits for the GPU is found before it is captured",
        "            _without_waiting(work)\n",
        "            work()\n",
        "test_a_capture_comes_behind_two_runs_of_which_one_may_not_wait",
    ),
    graphs(
        "after a capture that fails a step may wait again",
        "        finally:\n            cuda.set_sync_debug_mode(before)\n",
        "        finally:\n            pass\n",
        "test_after_work_that_waits_it_may_again",
    ),
    sampler(
        "drawing waits for a GPU once",
        "    if _is_asynchronous(logits) or not is_usable.all():",
        "    if not is_usable.all():",
        "test_a_gpu_is_waited_for_once",
    ),
    memory(
        "of a GPU there is room left for steps and graphs",
        "max(0, min(free * CUDA_SHARE, free - CUDA_RESERVE_BYTES))",
        "free * CUDA_SHARE",
        "test_of_a_gpu_there_is_room_left_for_steps_and_graphs",
    ),
    loader(
        "Triton launches on the GPU that was chosen",
        "        torch.cuda.set_device(device)",
        "        pass",
        "test_on_a_gpu_decodes_are_captured_and_the_log_says_so",
    ),
    loader(
        "where Triton fails torch computes",
        "        if fallback_reason and kernels.has_triton(torch.device(device)):\n",
        "        if False:\n",
        "test_where_triton_fails_torch_computes_and_the_log_says_so",
    ),
    loader(
        "a GPU that fails at graphs says what to do",
        "    except Exception as error:\n        wanting",
        "    except ZeroDivisionError as error:\n        wanting",
        "test_a_gpu_that_fails_at_graphs_says_what_to_do",
    ),
]

_KERNELS = [
    native(
        "a library that is cut off is not loaded",
        """\
    if hashlib.sha256(content[:-_CHECKSUM_BYTES]).digest() != content[-_CHECKSUM_BYTES:]:
        return f"{path.name} is damaged"
""",
        "",
        "test_a_library_that_cannot_be_loaded_is_none_and_the_reason_is_known",
    ),
    native(
        "a library that cannot be loaded does not keep a server from starting",
        "    except OSError as error:  # what is whole need not be a library, nor one of this system's\n",
        "    except ZeroDivisionError as error:\n",
        "test_a_library_that_cannot_be_loaded_is_none_and_the_reason_is_known[no library]",
    ),
    native(
        "a library that cannot be loaded is built again",
        "    if not _why_not_loaded(path):\n",
        "    if path.is_file():\n",
        "test_a_library_that_cannot_be_loaded_is_built_again",
    ),
    native(
        "what was built and cannot be loaded is not left for a server",
        "        if problem:\n",
        "        if False:\n",
        "test_what_the_compiler_made_and_cannot_be_loaded_is_not_left_for_a_server",
    ),
    native(
        "a library is tried in a process of its own",
        'done.returncode}" if done.returncode else ""',
        'done.returncode}" if done.returncode > 0 else ""',
        "test_a_library_that_ends_its_process_ends_no_other",
    ),
    native(
        "two that build do not write over each other",
        'path.with_suffix(f".{os.getpid()}")',
        'path.with_suffix(".unfinished")',
        "test_two_that_build_do_not_write_over_each_other",
    ),
    native(
        "a folder that cannot be written to is a reason and no traceback",
        "    except OSError as error:\n        raise CannotBuild(",
        "    except ZeroDivisionError as error:\n        raise CannotBuild(",
        "test_a_folder_that_cannot_be_written_to_is_a_reason",
    ),
    native(
        "a folder that is read-only is known before the compiler works",
        "        unfinished.touch()  # known at once, and not when the compiler has worked for a minute\n",
        "",
        "test_a_folder_that_is_read_only_is_a_reason",
    ),
    native(
        "a package that is missing is a reason and no traceback",
        "    except ImportError as error:\n",
        "    except ZeroDivisionError as error:\n",
        "test_a_package_that_is_missing_is_a_reason",
    ),
]

_RETRY_AFTER = [
    service_rate(
        "Retry-After grows when nobody leaves any more",
        "        elapsed_s = self._clock(now) - left[0][0]\n",
        "        elapsed_s = left[-1][0] - left[0][0]\n",
        "test_when_nobody_leaves_any_more_it_grows",
    ),
    service_rate(
        "time without work does not count for Retry-After",
        "            self._worked_s, self._working_since = self._clock(now), None\n",
        "            pass\n",
        "test_time_without_work_does_not_count",
    ),
    service_rate(
        "Retry-After is at least a second",
        "        return max(1, min(NEVER_LONGER_S, math.ceil(wait_s)))",
        "        return min(NEVER_LONGER_S, math.floor(wait_s))",
        "test_it_is_a_whole_number_within_bounds",
    ),
    service_rate(
        "Retry-After has an upper bound",
        "        return max(1, min(NEVER_LONGER_S, math.ceil(wait_s)))",
        "        return max(1, math.ceil(wait_s))",
        "test_it_is_a_whole_number_within_bounds",
    ),
    service_rate(
        "Retry-After forgets the distant past",
        "deque([(0.0, 0)], maxlen=WINDOW)",
        "deque([(0.0, 0)])",
        "test_the_distant_past_is_forgotten",
    ),
    service_rate(
        "Retry-After can be told before anybody has left",
        "elapsed_s / max(1, len(left) - 1)",
        "elapsed_s / (len(left) - 1)",
        "test_before_anybody_has_left_it_is_at_least_what_has_passed",
    ),
]

_LOG = [
    log(
        "a client that is cut off for not reading is no error in the log",
        "    return not (record.exc_info and isinstance(record.exc_info[1], TimeoutError))\n",
        "    return True\n",
        "test_a_client_that_was_cut_off_is_no_news",
    ),
]

MUTATIONS: list[Mutation] = [
    *_SCHEDULING,
    *_SAMPLING,
    *_GUESSES,
    *_ARITHMETIC,
    *_GPU,
    *_KERNELS,
    *_RETRY_AFTER,
    *_LOG,
]
