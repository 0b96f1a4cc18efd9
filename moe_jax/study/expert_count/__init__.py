"""The study of the UNCURL question: pretrain few experts, or more and shrink?"""
