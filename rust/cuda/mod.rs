//! CUDA's libraries: found when they are asked for, never linked. What is here knows nothing of schedules.
