"""What each framework does to the optimizer: roles, rates and numbers stay as they are."""

import copy

import pytest
import torch
from torch import nn

import polargrad
from polargrad.integrations import lightning, transformers
from polargrad.lab.train import WarmupLinearDecay


@pytest.fixture
def decoder():
    """A decoder whose head is its own."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    return Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=32,
            hidden_size=8,
            intermediate_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            num_key_value_heads=2,
            tie_word_embeddings=False,
        )
    )


def roles(optimizer):
    return [group["role"] for group in optimizer.param_groups]


class TestTrainer:
    @pytest.fixture
    def arguments(self, tmp_path):
        pytest.importorskip("accelerate")
        from transformers import TrainingArguments

        return TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1)

    def test_every_model_that_is_made_gets_its_own_groups(self, arguments, decoder):
        from transformers import Trainer

        chosen = transformers.optimizer(hidden={"lr": 0.01})
        trainer = Trainer(model_init=lambda: decoder, args=arguments, optimizer_cls_and_kwargs=chosen)
        for _ in range(2):  # as a search of hyperparameters does
            trainer.optimizer = None
            made = trainer.create_optimizer()
            assert isinstance(made, polargrad.PolarGrad)
            assert roles(made) == ["hidden", "embedding", "head", "vector"]
            assert made.param_groups[0]["lr"] == 0.01

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("accumulation", [1, 2])
    def test_a_run_that_is_stopped_and_resumed_ends_at_the_same_weights(self, accumulation, tmp_path, decoder):
        pytest.importorskip("accelerate")
        from transformers import Trainer, TrainingArguments

        rows = (torch.arange(32).unsqueeze(1) * 5 ** torch.arange(6) + 3) % 32
        initial = copy.deepcopy(decoder.state_dict())

        def trained(folder, checkpoint=None):
            """Weights after 6 steps over an epoch's end, with a checkpoint after 3 in its middle."""
            decoder.load_state_dict(initial)
            arguments = TrainingArguments(
                output_dir=str(tmp_path / folder), max_steps=6, save_steps=3, per_device_train_batch_size=4,
                gradient_accumulation_steps=accumulation, warmup_steps=2, use_cpu=True, report_to="none",
                disable_tqdm=True,
            )  # fmt: skip
            trainer = Trainer(
                model=decoder,
                args=arguments,
                train_dataset=[{"input_ids": row, "labels": row} for row in rows],
                optimizer_cls_and_kwargs=transformers.optimizer(hidden={"lr": 0.01}),
            )
            trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
            return [p.detach().clone() for p in decoder.parameters()]

        whole, checkpoint = trained("whole"), tmp_path / "whole" / "checkpoint-3"
        assert all(map(torch.equal, trained("resumed", checkpoint), whole))
        (checkpoint / "optimizer.pt").unlink()
        assert not any(map(torch.equal, trained("without state", checkpoint), whole))

    def test_what_routing_refuses_is_refused_when_training_starts(self, arguments, decoder):
        from transformers import Trainer

        chosen = transformers.optimizer(rules=[("*.nosuch", "head")])
        trainer = Trainer(model=decoder, args=arguments, train_dataset=[], optimizer_cls_and_kwargs=chosen)
        with pytest.raises(ValueError, match="matches no trainable parameter"):
            trainer.create_optimizer()

    @pytest.mark.parametrize("ignored", [{"learning_rate": 3e-4}, {"weight_decay": 0.1}, {"adam_beta2": 0.95}])
    def test_arguments_that_would_be_ignored_are_refused(self, tmp_path, decoder, ignored):
        from transformers import Trainer, TrainingArguments

        arguments = TrainingArguments(output_dir=str(tmp_path), use_cpu=True, report_to="none", max_steps=1, **ignored)
        trainer = Trainer(model=decoder, args=arguments, optimizer_cls_and_kwargs=transformers.optimizer())
        (name,) = ignored
        with pytest.raises(ValueError, match=rf"TrainingArguments\({name}=.* would be ignored: every role"):
            trainer.create_optimizer()


class TestLightning:
    def test_a_backbone_can_be_added_later(self):
        """What Lightning's BackboneFinetuning does: groups without names join those with names."""
        pytest.importorskip("lightning")
        from lightning.pytorch.callbacks import BackboneFinetuning

        head, backbone = nn.Linear(4, 3), nn.Linear(4, 4, bias=False)
        optimizer = lightning.configure_optimizers(head)["optimizer"]
        BackboneFinetuning.unfreeze_and_add_param_group(backbone, optimizer, lr=0.01)
        assert optimizer.param_groups[-1]["params"] == [backbone.weight]
        for group in polargrad.parameter_groups(nn.Linear(3, 3)):  # a backbone with vectors: by role
            optimizer.add_param_group({**group, "lr": 0.001})
        for group in optimizer.param_groups:
            for p in group["params"]:
                p.grad = torch.ones_like(p)
        optimizer.step()
        names = [name for group in optimizer.param_groups for name in group["param_names"]]
        assert len(names) == sum(len(group["params"]) for group in optimizer.param_groups)

    def test_parameters_that_are_added_later_follow_the_schedule(self):
        module = nn.ModuleDict({"backbone": nn.Sequential(nn.Linear(4, 4)), "head": nn.Linear(4, 3)})
        module["backbone"].requires_grad_(False)
        made = lightning.configure_optimizers(module, schedule=lambda step: 1 / (1 + step), hidden={"lr": 0.0})
        optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
        module["backbone"].requires_grad_(True)
        optimizer.add_param_group({"params": list(module["backbone"].parameters()), "lr": 0.2})
        for step in range(3):
            for p in module.parameters():
                p.grad = torch.ones_like(p)
            optimizer.step()
            scheduler.step()
            rates = [group["lr"] for group in optimizer.param_groups[2:]]
            assert rates == pytest.approx([0.2 / (2 + step)] * 2)

    @pytest.mark.filterwarnings("ignore")
    def test_backbone_finetuning_adds_its_parameters_by_role_and_resumes(self, tmp_path):
        pl = pytest.importorskip("lightning.pytorch")
        from lightning.pytorch.callbacks import BackboneFinetuning

        class Module(pl.LightningModule):
            def __init__(self, part=lambda module: module):
                super().__init__()
                layers = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 8)
                self.backbone, self.head, self.part = nn.Sequential(*layers), nn.Linear(8, 3), part

            def training_step(self, batch, index):
                return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

            def configure_optimizers(self):
                return lightning.configure_optimizers(self.part(self), hidden={"lr": 0.02}, vector={"lr": 0.04})

        def fit(module, epochs, ckpt_path=None):
            data, callback = [(torch.randn(1, 8, 8), i % 3) for i in range(4)], BackboneFinetuning(1, lambda epoch: 2.0)
            trainer = pl.Trainer(
                max_epochs=epochs, callbacks=[callback], logger=False, accelerator="cpu",
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            trainer.fit(
                module, torch.utils.data.DataLoader(data, batch_size=2), ckpt_path=ckpt_path, weights_only=False
            )
            trainer.save_checkpoint(tmp_path / "last.ckpt")
            return [(g["role"], round(g["lr"], 6)) for g in trainer.optimizers[0].param_groups]

        head = [("hidden", 0.02), ("vector", 0.04)]
        assert fit(Module(), 2) == [*head, ("conv", 0.0028), ("vector", 0.004), ("hidden", 0.002)]
        later = [*head, ("conv", 0.0056), ("vector", 0.008), ("hidden", 0.004)]
        assert fit(Module(), 3) == later
        assert fit(Module(), 4, tmp_path / "last.ckpt") == [
            *head,
            ("conv", 0.0112),
            ("vector", 0.016),
            ("hidden", 0.008),
        ]
        with pytest.raises(
            ValueError, match=r"not of the module that configure_optimizers was given.*give it the whole"
        ):
            fit(Module(lambda module: module.head), 2)

    @pytest.mark.filterwarnings("ignore")
    @pytest.mark.parametrize("schedule", [None, lambda step: 1 / (1 + step)], ids=["constant", "schedule"])
    def test_backbone_finetuning_resumes_to_the_same_weights(self, schedule, tmp_path):
        pl = pytest.importorskip("lightning.pytorch")
        from lightning.pytorch.callbacks import BackboneFinetuning

        class Thawing(BackboneFinetuning):
            """Undoes that Lightning freezes the backbone again when it resumes (its issue 21901; docs/limits.md)."""

            def on_train_start(self, trainer, pl_module):
                for p in (p for group in trainer.optimizers[0].param_groups for p in group["params"]):
                    p.requires_grad_(True)

        class Module(pl.LightningModule):
            def __init__(self):
                super().__init__()
                torch.manual_seed(0)
                self.backbone, self.head = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8)), nn.Linear(8, 3)

            def training_step(self, batch, index):
                return nn.functional.cross_entropy(self.head(self.backbone(batch[0])), batch[1])

            def configure_optimizers(self):
                return lightning.configure_optimizers(self, schedule=schedule, hidden={"lr": 0.02})

        torch.manual_seed(1)
        data = [(torch.randn(8), i % 3) for i in range(8)]

        def fit(epochs, ckpt_path=None):
            trainer = pl.Trainer(
                max_epochs=epochs, callbacks=[Thawing(1, lambda epoch: 1.5)], logger=False, accelerator="cpu",
                enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            )  # fmt: skip
            module = Module()
            trainer.fit(module, torch.utils.data.DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
            trainer.save_checkpoint(tmp_path / "last.ckpt")
            return module, [group["lr"] for group in trainer.optimizers[0].param_groups]

        whole, rates = fit(4)
        for stop in (1, 2, 3):
            fit(stop)
            resumed, resumed_rates = fit(4, tmp_path / "last.ckpt")
            assert resumed_rates == rates
            for p, q in zip(whole.parameters(), resumed.parameters(), strict=True):
                assert torch.equal(p, q)

    def test_the_module_itself_will_do(self, decoder):
        pytest.importorskip("lightning")
        from lightning.pytorch import LightningModule

        class Module(LightningModule):
            def __init__(self):
                super().__init__()
                self.model = decoder

        made = lightning.configure_optimizers(Module(), hidden={"lr": 0.01})
        assert list(made) == ["optimizer"]
        assert roles(made["optimizer"]) == ["hidden", "embedding", "head", "vector"]

    def test_a_schedule_moves_every_group_at_every_step(self, decoder):
        made = lightning.configure_optimizers(decoder, schedule=WarmupLinearDecay(total=2, decay_fraction=1.0))
        assert made["lr_scheduler"]["interval"] == "step"
        optimizer, scheduler = made["optimizer"], made["lr_scheduler"]["scheduler"]
        for expected in (0.5, 0.5):  # the second is past the end
            optimizer.step()
            scheduler.step()
            assert [g["lr"] / g["initial_lr"] for g in optimizer.param_groups] == [expected] * 4
        optimizer.step()
        with pytest.raises(ValueError, match="make total larger"):
            scheduler.step()


class TestAccelerate:
    @pytest.fixture
    def accelerate(self):
        return pytest.importorskip("accelerate")

    def test_prepare_keeps_groups_and_state(self, accelerate, decoder):
        optimizer = polargrad.PolarGrad(polargrad.parameter_groups(decoder))
        accelerator = accelerate.Accelerator(cpu=True)
        _, prepared = accelerator.prepare(decoder, optimizer)
        assert prepared.optimizer is optimizer
        assert roles(prepared) == ["hidden", "embedding", "head", "vector"]
        held = {id(p) for group in optimizer.param_groups for p in group["params"]}
        assert held == {id(p) for p in decoder.parameters()}

    def test_accumulated_gradients_are_those_of_the_whole_batch(self, accelerate):
        x, y = torch.randn(8, 4, dtype=torch.float64), torch.randn(8, 3, dtype=torch.float64)

        def trained(parts):
            torch.manual_seed(0)
            model = nn.Linear(4, 3).double()
            accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=parts)
            model, optimizer = accelerator.prepare(model, polargrad.PolarGrad(polargrad.parameter_groups(model)))
            for a, b in zip(x.chunk(parts), y.chunk(parts), strict=True):
                with accelerator.accumulate(model):
                    accelerator.backward(nn.functional.mse_loss(model(a), b))
                    if accelerator.sync_gradients:
                        accelerator.clip_grad_norm_(model.parameters(), 0.1)
                    optimizer.step()
                    optimizer.zero_grad()
            return model.weight.detach(), optimizer.optimizer.state[model.bias]["step"].item()

        whole, steps = trained(1)
        halves, steps_of_halves = trained(2)
        assert steps == steps_of_halves == 1
        # Muon's five steps run in bfloat16 and turn a difference in the last bit into one of bfloat16's.
        assert (whole - halves).abs().max() <= 2 * torch.finfo(torch.bfloat16).eps * 0.005
