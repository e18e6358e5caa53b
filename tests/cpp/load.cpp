// Runs an exported model without Python:
//
//   load LIBRARY MODEL INPUTS OUTPUTS [INPUTS OUTPUTS ...]
//
// LIBRARY is libeqk_cpu.so or, where a gradient is made here or in the model, libeqk_autograd.so. MODEL is an
// AOTInductor package (.pt2) or TorchScript (.pt); INPUTS a tuple of tensors that torch.save wrote, and OUTPUTS another
// one, for torch.load. TorchScript of an energy alone (.energy.pt) gets its gradients here: OUTPUTS are the energy, the
// forces on positions, the first of INPUTS, and with .energy2.pt the gradient of the sum of their squares.

#include <dlfcn.h>
#include <torch/csrc/autograd/autograd.h>
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
  const bool second = path.ends_with(".energy2.pt");
  if (second || path.ends_with(".energy.pt"))
    return [script, second](const Tensors& inputs) {
      const Tensors positions{inputs[0].set_requires_grad(true)};
      const at::Tensor energy = script->forward({inputs.begin(), inputs.end()}).toTensor();
      const at::Tensor forces = -torch::autograd::grad({energy}, positions, {}, second, second)[0];
      Tensors outputs{energy.detach(), forces.detach()};
      if (second) outputs.push_back(torch::autograd::grad({forces.square().sum()}, positions)[0]);
      return outputs;
    };
  return [script](const Tensors& inputs) {
    const c10::IValue out = script->forward({inputs.begin(), inputs.end()});
    if (out.isTensor()) return Tensors{out.toTensor()};
    Tensors outputs;
    for (const c10::IValue& element : out.toTupleRef().elements()) outputs.push_back(element.toTensor());
    return outputs;
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
