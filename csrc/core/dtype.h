#pragma once

namespace eqk {

// The storage types of kernels; the 16-bit ones compute in float.
enum class Dtype { float32, float64, float16, bfloat16 };

}  // namespace eqk
