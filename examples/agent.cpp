// An agent in C++: it follows the embeddings, and asks a question whenever a camera's meaning has changed.
//
//     ros2 run vljepa_ros agent --ros-args -p question:="What colour is the cube?" -p "candidates:=[red, blue]"
//
// colcon builds it where rclcpp is found.
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <string>
#include <vector>

#include <rclcpp/rclcpp.hpp>
#include <vljepa_ros/msg/semantic_embedding.hpp>
#include <vljepa_ros/srv/ask.hpp>

using vljepa_ros::msg::SemanticEmbedding;
using vljepa_ros::srv::Ask;

class Agent : public rclcpp::Node
{
public:
  Agent()
  : Node("agent"),
    question_(declare_parameter("question", "What is happening?")),
    candidates_(declare_parameter("candidates", std::vector<std::string>{})),
    ask_(create_client<Ask>("ask")),
    embeddings_(create_subscription<SemanticEmbedding>("embeddings", 10,
      [this](SemanticEmbedding::ConstSharedPtr step) {hear(step);})) {}

private:
  void hear(SemanticEmbedding::ConstSharedPtr step)
  {
    auto & last = last_[step->camera + "\n" + step->query];
    std::swap(last, step);  // `step` is the one before now
    if (step && (step->segment_id == last->segment_id || step->model_id != last->model_id)) {return;}
    // Embeddings of one model are compared by their cosine; of unit length, it is the dot product.
    const double cosine = !step ? 1.0 : std::inner_product(
      step->embedding.begin(), step->embedding.end(), last->embedding.begin(), 0.0);
    auto request = std::make_shared<Ask::Request>();
    request->camera = last->camera;
    request->question = question_;
    request->candidates = candidates_;
    ask_->prune_pending_requests();  // what was not answered until now is of yesterday
    ask_->async_send_request(request, [this, cosine, last](rclcpp::Client<Ask>::SharedFuture future) {
        const auto answer = future.get();
        RCLCPP_INFO(get_logger(), "%s, segment %lu (cosine to the step before %.2f): %s",
          last->camera.c_str(), static_cast<unsigned long>(last->segment_id), cosine,
          (answer->success ? answer->answer : answer->message).c_str());
      });
  }

  std::string question_;
  std::vector<std::string> candidates_;  // none: an open answer
  std::map<std::string, SemanticEmbedding::ConstSharedPtr> last_;  // by camera and query
  rclcpp::Client<Ask>::SharedPtr ask_;
  rclcpp::Subscription<SemanticEmbedding>::SharedPtr embeddings_;
};

int main(int argc, char ** argv)
{
  const auto others = rclcpp::init_and_remove_ros_arguments(argc, argv);
  if (others.size() > 1) {  // neither a question for the usage nor a mistyped argument starts it
    const bool asked = others[1] == "--help" || others[1] == "-h";
    (asked ? std::cout : std::cerr) <<
      "Usage: agent [--ros-args -p question:=TEXT -p \"candidates:=[TEXT, ...]\"]" << std::endl;
    return asked ? 0 : 2;
  }
  rclcpp::spin(std::make_shared<Agent>());
  rclcpp::shutdown();
  return 0;
}
