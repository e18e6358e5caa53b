// Runs an exported model without Python:
//
//   load libeqk_cpu.so MODEL INPUTS OUTPUTS [INPUTS OUTPUTS ...]
//
// MODEL is an AOTInductor package (.pt2) or TorchScript (.pt); INPUTS a tuple of tensors that torch.save wrote, and
// OUTPUTS another one, for torch.load.

#include <dlfcn.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/api/module.h>
#include <torch/csrc/jit/serialization/import.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <fstream>
#include <functional>
#include <iostream>
#include <iterator>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

using Tensors = std::vector<at::Tensor>;

Tensors read(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error("cannot read " + path);
  const std::vector<char> bytes{std::istreambuf_iterator<char>(file), {}};
  const c10::IValue value = torch::jit::pickle_load(bytes);
  Tensors tensors;
  for (const c10::IValue& element : value.toTupleRef().elements()) tensors.push_back(element.toTensor());
  return tensors;
}

void write(const std::string& path, const Tensors& tensors) {
  const std::vector<c10::IValue> elements(tensors.begin(), tensors.end());
  const std::vector<char> bytes = torch::jit::pickle_save(c10::ivalue::Tuple::create(elements));
  std::ofstream file(path, std::ios::binary);
  if (!file.write(bytes.data(), static_cast<std::streamsize>(bytes.size())))
    throw std::runtime_error("cannot write " + path);
}

std::function<Tensors(const Tensors&)> load(const std::string& path) {
  if (path.ends_with(".pt2")) {
    const auto package = std::make_shared<torch::inductor::AOTIModelPackageLoader>(path);
    return [package](const Tensors& inputs) { return package->run(inputs); };
  }
  const auto script = std::make_shared<torch::jit::Module>(torch::jit::load(path));
  return [script](const Tensors& inputs) {
    const c10::IValue out = script->forward({inputs.begin(), inputs.end()});
    return out.isTensor() ? Tensors{out.toTensor()} : out.toTensorVector();
  };
}

}  // namespace

int main(int argc, char** argv) try {
  if (argc < 5 || argc % 2 == 0)
    throw std::runtime_error("expected: LIBRARY MODEL INPUTS OUTPUTS [INPUTS OUTPUTS ...]");
  // First, so that the ops are there when the model names them. The process keeps it.
  if (dlopen(argv[1], RTLD_NOW | RTLD_GLOBAL) == nullptr) throw std::runtime_error(dlerror());
  const auto model = load(argv[2]);
  for (int i = 3; i < argc; i += 2) write(argv[i + 1], model(read(argv[i])));
} catch (const std::exception& error) {
  std::cerr << error.what() << '\n';
  return 1;
}
