"""The parts of the recipe that pre-trains the bundled tiny CLIP, see tools/pretrain_tiny_clip.py.

corpus: drawings, captions and batches. augment: random views of the drawings.
training: the model, the loss and the loop. model_folder: the files of the result.
"""
